"""Drafts beside structured output and faults, on either backend: what comes is what would have come."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends import registry
from backends.engine import Engine
from backends.messages import (
    ChatPrompt,
    Generate,
    JsonSchema,
    Sampling,
    SpeculationMode,
    Store,
    TokenPrompt,
)
from tests.gguf.driver import Outcome, step_until_idle
from tests.models import canary_p
from tests.models.canary_p import CYCLE
from tests.specs import spec_of

pytestmark = pytest.mark.engine

PERSON = {
    "type": "object",
    "properties": {"first_name": {"enum": ["Paris", "France"]}, "occupation": {"type": "boolean"}},
    "required": ["first_name", "occupation"],
    "additionalProperties": False,
}


def _open(backend: str, path: Path, mode: SpeculationMode) -> Engine:
    spec = spec_of("model", backend, str(path), context=1024, parallel=2, threads=1, speculation=mode)
    return registry.engine_of(backend)(spec, lambda _: None)


@pytest.fixture(scope="module")
def demos(backend: str, demo_model: Path) -> Iterator[dict[str, Engine]]:
    engines = {mode: _open(backend, demo_model, mode) for mode in ("off", "ngram")}
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="module")
def drafting(backend: str, canary_model: Path) -> Iterator[Engine]:
    engine = _open(backend, canary_model, "ngram")
    yield engine
    engine.close()


def run(engine: Engine, job: Generate, **changed: Any) -> tuple[Outcome, Counter[str]]:
    """What became of a job, and the drafted tokens that came true by drafter."""
    outcome, accepted = Outcome(), Counter[str]()
    prepared: Any = engine.prepare(job)
    outcome.events += engine.add(replace(prepared, **changed))
    while not engine.idle:
        step = engine.step()
        outcome.events += step.events
        for drafter, (_, n_accepted) in step.drafted.items():
            accepted[drafter] += n_accepted
    step_until_idle(engine, {job.id: outcome})
    return outcome, accepted


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(temperature=0.8, seed=4)], ids=["greedy", "sampled"]
)
def test_what_a_schema_leaves_no_choice_is_drafted_and_the_answer_is_the_same(
    demos: dict[str, Engine], sampling: Sampling
) -> None:
    asked = ChatPrompt([{"role": "user", "content": "What is the capital of France?"}])
    job = Generate("j", asked, sampling=sampling, max_tokens=80, constraint=JsonSchema(json.dumps(PERSON)), logprobs=1)

    plain, _ = run(demos["off"], job)
    told, accepted = run(demos["ngram"], job)

    assert told.text() == plain.text()
    assert told.reason() == plain.reason() == "stop"
    assert set(json.loads(told.text())) == {"first_name", "occupation"}
    assert [e.token for e in told.logprobs()] == [e.token for e in plain.logprobs()]
    assert accepted["grammar"] > 5


def test_a_drafter_that_fails_ends_its_drafts_and_not_the_answer(drafting: Engine, capfd: Any) -> None:
    sampling = Sampling(temperature=0)
    job = Generate("j", TokenPrompt([*CYCLE[:8], CYCLE[1]]), sampling=sampling, max_tokens=20)

    told, accepted = run(drafting, job, prediction=("no", "token", "at", "all"))

    assert told.text() == canary_p.expected_text(canary_p.PIECES[CYCLE[1]].decode(), 20)
    assert accepted.total() == 0
    assert "a drafter failed" in capfd.readouterr().err


def test_what_the_prefix_cache_has_seen_is_drafted_within_its_domain(
    backend: str, canary_model: Path, tmp_path: Path
) -> None:
    spec = spec_of("model", backend, canary_model, context=1024, threads=1, speculation="ngram")
    engine = registry.engine_of(backend)(
        msgspec.structs.replace(spec, store=Store(str(tmp_path), 32 << 20)), lambda _: None
    )

    def answer(name: str, prompt: list[int], **fields: Any) -> int:
        job = Generate(name, TokenPrompt(prompt), sampling=Sampling(temperature=0), max_tokens=60, **fields)
        told, accepted = run(engine, job)
        assert told.text() == canary_p.expected_text(canary_p.PIECES[prompt[-1]].decode(), 60)
        return accepted["cache"]

    assert answer("first", CYCLE[100:120], cache_domain="a") == 0
    assert answer("again", [CYCLE[7], CYCLE[119]], cache_domain="a") > 30
    assert answer("of another", [CYCLE[7], CYCLE[119]], cache_domain="b") == 0
    assert answer("for itself", [CYCLE[8], CYCLE[119]], cache_domain="a", cache_prompt=False) == 0
    engine.close()
