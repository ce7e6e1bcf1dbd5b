"""Drafts beside structured output, faults and chance, on either backend: what comes is what would have come."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends import registry
from backends.engine import Engine
from backends.messages import (
    ChatPrompt,
    DraftFiles,
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
SHARES = {CYCLE[0]: 0.7, CYCLE[2]: 0.15, CYCLE[4]: 0.1, CYCLE[6]: 0.05}
"""How likely each of four tokens is to come next, whatever came before."""
LIKELY = {token: 80 + math.log(share) for token, share in SHARES.items()}
MOST_CHI_SQUARE = 32.9
"""Of twelve degrees of freedom, at p = 0.001."""


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


def test_drafts_leave_the_chances_of_tokens_as_they_are(drafting: Engine, backend: str, full_counts: bool) -> None:
    _check_chances(drafting, 250 if full_counts and backend == "gguf" else 4)


def test_so_do_those_of_a_model(canary_path: Path, tmp_path: Path, full_counts: bool) -> None:
    likeliest = canary_p.build(tmp_path / "draft.gguf", always=CYCLE[0])
    spec = spec_of("model", "gguf", canary_path, context=1024, threads=1, speculation="ngram")
    draft = DraftFiles("draft", str(likeliest))
    engine = registry.engine_of("gguf")(msgspec.structs.replace(spec, draft=draft), lambda _: None)

    n_by_model = _check_chances(engine, 250 if full_counts else 4)["model"]
    engine.close()

    assert n_by_model > 100


def _check_chances(engine: Engine, n_answers: int) -> Counter[str]:
    """Hold what follows each token against the shares of all; the drafted tokens that came true, by drafter."""
    followed: Counter[tuple[int, int]] = Counter()
    came_true = Counter[str]()
    for number in range(n_answers):
        sampling = Sampling(temperature=1, seed=number, logit_bias=LIKELY)
        job = Generate(f"j{number}", TokenPrompt([CYCLE[0]] * 4), sampling=sampling, max_tokens=800, logprobs=0)

        told, accepted = run(engine, job)

        ids = [canary_p.IDS[entry.bytes] for entry in told.logprobs()]
        followed.update(pairwise(ids))
        came_true += accepted

    counts = {one: sum(followed[one, other] for other in SHARES) for one in SHARES}
    expected = {(one, other): counts[one] * SHARES[other] for one in SHARES for other in SHARES}
    chi_square = sum((followed[pair] - value) ** 2 / value for pair, value in expected.items())
    assert sum(counts.values()) == followed.total()
    assert chi_square < MOST_CHI_SQUARE
    assert came_true.total() > 0.1 * followed.total()
    return came_true
