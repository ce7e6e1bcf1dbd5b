"""What a step costs where the engine's threads cannot all have a core."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from backends.border.child import environment
from demo import GGUF_PATH

pytestmark = pytest.mark.engine

# In processor time: what other processes take of the core is not counted, and waiting awake is.
MEDIAN_STEP_OF_TWO_THREADS_ON_ONE_CORE = """
import os, statistics, sys, time
from pathlib import Path
from backends import alone
from backends.workload import Workload

work = Workload(streams=2, n_prompt=8, n_generate=6, context=256, threads=2)
engine = alone.open_engine(Path(sys.argv[1]), work)
alone.start(engine, alone.jobs(work, alone.vocabulary_size(engine)))
engine.step()
core = min(os.sched_getaffinity(0))
for thread in os.listdir("/proc/self/task"):
    os.sched_setaffinity(int(thread), {core})
took_s = []
while not engine.idle:
    began = time.process_time()
    alone.check(engine.step())
    took_s.append(time.process_time() - began)
print(statistics.median(took_s))
"""


def test_threads_that_share_a_core_do_not_spend_its_time_waiting_for_each_other() -> None:
    without = {name: value for name, value in os.environ.items() if "OMP_" not in name}

    ours_s, librarys_s = (median_step_s(env) for env in (environment(without), without))

    assert ours_s < librarys_s / 3, (ours_s, librarys_s)  # a twelfth of what libgomp's own patience takes


def median_step_s(env: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", MEDIAN_STEP_OF_TWO_THREADS_ON_ONE_CORE, str(GGUF_PATH)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return float(done.stdout.splitlines()[-1])
