"""A Hugging Face model with a sliding window: prompts longer than its rings are found again, and say the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.bnb.loading import load
from backends.engine import Engine
from backends.messages import Generate, KvLayout, Sampling, Store, TokenPrompt
from tests.gguf.driver import Outcome, step_until_idle
from tests.quantize.zoo import build
from tests.specs import spec_of

pytestmark = pytest.mark.engine

HEAD, N_PROMPT = 192, 1100
"""Rings hold 768 positions here."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("windowed")
    return build("mistral", path, sliding_window=40, max_position_embeddings=2048)


@pytest.fixture(params=["split", "unified"])
def engine(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Engine]:
    layout: KvLayout = request.param
    spec = spec_of(
        name="windowed",
        backend="bnb",
        path=str(folder),
        context=2048,
        parallel=2,
        kv_layout=layout,
        kv_tokens=4096 if layout == "split" else 2560,
        store=Store(str(tmp_path / "store"), 64 << 20),
    )
    engine = load(spec, lambda _: None)
    yield engine
    engine.close()


def prompt(seed: int, n_tokens: int) -> list[int]:
    return np.random.default_rng([23, seed]).integers(5, 60, n_tokens).tolist()


def _job(tokens: list[int], **fields: object) -> Generate:
    return Generate(
        id=f"{len(tokens)}-{np.random.default_rng().integers(1 << 60)}",
        prompt=TokenPrompt(tokens),
        max_tokens=12,
        ignore_eos=True,
        sampling=Sampling(temperature=0),
        logprobs=0,
        **fields,  # type: ignore[arg-type]
    )


def _prepared(engine: Engine, job: Generate) -> object:
    prepared: Any = engine.prepare(job)
    assert not isinstance(prepared, list)
    return replace(prepared, borders=(HEAD, *prepared.borders))


def _said(outcome: Outcome) -> list[str]:
    return [f"{entry.bytes!r} {entry.logprob:.3f}" for entry in outcome.logprobs()]


def ask(engine: Engine, tokens: list[int], **fields: object) -> tuple[list[str], int]:
    """The tokens and log-probabilities of an answer as texts, and how many tokens of the prompt were there."""
    job, outcome = _job(tokens, **fields), Outcome()
    engine.add(_prepared(engine, job))
    step_until_idle(engine, {job.id: outcome})
    return _said(outcome), outcome.finished.cached_tokens


def test_what_rings_have_forgotten_is_found_at_a_checkpoint(engine: Engine) -> None:
    head = prompt(1, HEAD)
    prompts = [head + prompt(2, N_PROMPT - HEAD), head + prompt(3, N_PROMPT - HEAD)]
    cold = [ask(engine, tokens, cache_prompt=False) for tokens in prompts]

    warm = [ask(engine, tokens) for tokens in (*prompts, *prompts)]

    assert [said for said, _ in warm] == [said for said, _ in cold] * 2
    assert [cached for _, cached in cold + warm] == [0, 0, 0, HEAD, N_PROMPT - 1, N_PROMPT - 1]


def test_who_comes_while_another_runs_begins_at_its_checkpoint(engine: Engine) -> None:
    head = prompt(4, HEAD)
    first, second = head + prompt(5, N_PROMPT - HEAD), head + prompt(6, 100)
    cold = [ask(engine, tokens, cache_prompt=False)[0] for tokens in (first, second)]
    running, job = Outcome(), _job(first)
    engine.add(_prepared(engine, job))
    while not running.deltas():
        running.events += engine.step().events

    late, outcome = _job(second), Outcome()
    engine.add(_prepared(engine, late))
    step_until_idle(engine, {job.id: running, late.id: outcome})

    assert [_said(one) for one in (running, outcome)] == cold
    split = engine._context.layout == "split"  # type: ignore[attr-defined]
    assert outcome.finished.cached_tokens == (HEAD if split else 0), "a pool has no cells for a copy"
