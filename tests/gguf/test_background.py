"""Jobs that have time: computed while no other is, and none of theirs is lost."""

from __future__ import annotations

import msgspec
import pytest

from backends.engine import Engine
from backends.messages import BACKGROUND_PRIORITY, Delta
from tests.gguf.driver import Outcome, run, step_until_idle, text_job

pytestmark = pytest.mark.engine


def add(engine: Engine, job, outcomes: dict[str, Outcome]) -> None:
    prepared = engine.prepare(job)
    outcomes[job.id] = Outcome(list(prepared if isinstance(prepared, list) else engine.add(prepared)))


def test_while_another_job_runs_those_that_have_time_get_no_token_and_then_all(engine: Engine) -> None:
    late = [text_job(f"background {n} ", id=f"late-{n}", max_tokens=20, ignore_eos=True) for n in range(2)]
    (alone, _) = run(engine, late)
    outcomes: dict[str, Outcome] = {}
    for job in late:
        add(engine, msgspec.structs.replace(job, priority=BACKGROUND_PRIORITY), outcomes)
    for _ in range(4):
        for event in engine.step().events:
            outcomes[event.id].events.append(event)
    before = {job.id: sum(one.n_tokens for one in outcomes[job.id].deltas(0)) for job in late}
    assert all(0 < n < 20 for n in before.values())
    add(engine, text_job("now ", id="now", max_tokens=8, ignore_eos=True), outcomes)
    while not any(isinstance(event, Delta) and event.finish_reason for event in outcomes["now"].events):
        for event in engine.step().events:
            outcomes[event.id].events.append(event)
    assert {job.id: sum(one.n_tokens for one in outcomes[job.id].deltas(0)) for job in late} == before

    step_until_idle(engine, outcomes)

    assert outcomes["late-0"].text() == alone.text()
    assert all(outcomes[job.id].finished.completion_tokens == 20 for job in late)
