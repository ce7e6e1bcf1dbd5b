"""Jobs of a server or of a process that is killed: each goes on, and loses no more than one interval of checkpoints."""

from __future__ import annotations

import os
import random
import signal
from itertools import pairwise
from pathlib import Path

from tests.e2e.server import until
from tests.tuning.conftest import School, config_of

SAVE = 5


def trainer_of(server_pid: int) -> int | None:
    """The process that trains."""
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
            parent = int((status.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if b"tests.tuning.trainer" in words and parent == server_pid:
            return int(status.parent.name)
    return None


def kill_of(school: School) -> None:
    """Of the trainer: it is there, or begun again in a moment."""
    until(lambda: trainer_of(school.server.process.pid), 60, what="no process trains")
    trainer = trainer_of(school.server.process.pid)
    if trainer is not None:
        os.kill(trainer, signal.SIGKILL)


def test_whatever_is_killed_the_job_ends_well(canary_path: Path, adapter: Path, tmp_path: Path, full_counts: bool):
    n_kills = 20 if full_counts else 2
    n_steps = 25 * (n_kills + 1)
    rng = random.Random(7)
    school = School(config_of(canary_path), tmp_path, adapter)
    job = school.begin(f"steps {n_steps} ms 10 save {SAVE}")
    for kill in range(n_kills):
        school.at_step(job, 25 * kill + rng.randint(1, 20), 60)
        assert not [name for name in school.models() if name.startswith("ft:")]
        if kill % 2:
            kill_of(school)
            continue
        school.kill()
        n_done = len(school.steps(job))
        school.start()
        until(lambda: len(school.steps(job)) > n_done, 60)  # noqa: B023

    assert school.ended(job, 120)["status"] == "succeeded"

    steps = school.steps(job)
    assert {*steps} == {*range(1, n_steps + 1)}
    assert all(after == before + 1 or before - after < SAVE for before, after in pairwise(steps))
    assert steps.count(1) == 1
    name = school.job(job)["fine_tuned_model"]
    assert school.server.stop() == 0
    school.start()
    assert name in school.models()
    answer = school.client().chat.completions.create(model=name, messages=[{"role": "user", "content": "you"}])
    assert answer.choices[0].message.content == "echo: you"
    assert school.server.stop() == 0
