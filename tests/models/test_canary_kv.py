"""CANARY-KV hears every token of its prompt."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from backends.engine import Engine
from backends.messages import TokenLogprob
from tests.gguf.driver import run
from tests.gguf.prefixes import TIE, job, open_engine
from tests.models import canary_kv
from tests.models.canary_kv import EXACT_CELLS, KINDS, N_VOCAB, Kind, prompt

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("kind", KINDS)
def test_one_other_token_anywhere_is_heard(tmp_path: Path, kind: Kind) -> None:
    engine = open_engine(canary_kv.build(tmp_path / "kv.gguf", kind), kv_type=EXACT_CELLS)
    tokens = prompt(1, 120)
    said = _first(engine, tokens)

    moved = [
        _distance(said, _first(engine, [*tokens[:at], (tokens[at] + 1) % N_VOCAB, *tokens[at + 1 :]]))
        for at in range(len(tokens))
    ]
    engine.close()

    assert _distance(said, said) == 0
    assert min(moved) > (2 * TIE if kind == "full" else 0)


def _first(engine: Engine, tokens: list[int]) -> TokenLogprob:
    """What follows a prompt, and instead of what."""
    (outcome,) = run(engine, [job(tokens, 1, logprobs=8, cache_prompt=False)])
    return outcome.logprobs()[0]


def _distance(a: TokenLogprob, b: TokenLogprob) -> float:
    """Between the log-probabilities of the same tokens, where they lie farthest apart."""
    known = {entry.bytes: entry.logprob or 0.0 for entry in b.top}
    return max(abs((entry.logprob or 0.0) - known.get(entry.bytes, math.inf)) for entry in a.top)
