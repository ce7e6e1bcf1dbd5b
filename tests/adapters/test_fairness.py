"""A flood of one adapter and a single request of another, on an engine whose pass has one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

import demo
from backends import registry
from backends.alone import check, jobs, start, vocabulary_size
from backends.generation.turns import TURN_US
from backends.messages import Finished
from backends.workload import Workload
from tests.adapters.passes import options
from tests.models import lora
from tests.specs import spec_of

pytestmark = pytest.mark.engine
N_FLOOD = 60
"""Requests; seven at a time have a place."""


def test_a_single_request_waits_no_longer_than_one_turn_of_the_flood(tmp_path: Path) -> None:
    names = ("flood", "single")
    paths = {n: lora.as_gguf(lora.build_folder(tmp_path / n, s), tmp_path / f"{n}.gguf") for s, n in enumerate(names)}
    spec = spec_of("demo", "gguf", demo.GGUF_PATH, parallel=8, threads=1, options=options(paths))
    engine: Any = registry.engine_of("gguf")(spec, lambda _: None)
    flood = jobs(Workload(streams=N_FLOOD, n_prompt=24, n_generate=60), vocabulary_size(engine))
    one = jobs(Workload(streams=1, n_prompt=24, n_generate=60), vocabulary_size(engine), first_seed=99)[0]
    start(engine, [msgspec.structs.replace(job, adapter="flood") for job in flood[:7]])
    for _ in range(3):
        check(engine.step())

    start(engine, [msgspec.structs.replace(one, id="single", adapter="single")])
    start(engine, [msgspec.structs.replace(job, adapter="flood") for job in flood[7:]])
    waits_us, away_us, longest_us, done, n_flood = [], 0, 0, False, 0
    while not done:
        step = check(engine.step())
        own = [event for event in step.events if event.id == "single"]
        n_flood += sum(isinstance(event, Finished) and event.id != "single" for event in step.events)
        done = any(isinstance(event, Finished) for event in own)
        longest_us = max(longest_us, step.duration_us)
        away_us = 0 if own else away_us + step.duration_us
        waits_us.append(away_us)
    engine.close()

    assert max(waits_us) > 0, "the flood had turns of its own"
    assert max(waits_us) <= TURN_US + 2 * longest_us, "a turn ends with the first step behind it, of two at least"
    assert n_flood < N_FLOOD, "the single one did not wait for the end of the flood"
