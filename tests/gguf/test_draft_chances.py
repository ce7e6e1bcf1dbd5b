"""Sampled answers follow the same chances whatever drafts: what follows each token is held against the shares of all.

With `--full-counts` over 200 000 draws for each drafter. What a plain step draws is `test_sampling`'s.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backends import registry
from backends.engine import Engine
from backends.messages import DraftFiles, Generate, Pattern, Sampling, Store, TokenPrompt
from tests.gguf.test_speculation_rules import run
from tests.models import canary_mtp, canary_p
from tests.models.canary_p import CYCLE
from tests.specs import spec_of

pytestmark = pytest.mark.engine

SHARES = {CYCLE[0]: 0.7, CYCLE[2]: 0.15, CYCLE[4]: 0.1, CYCLE[6]: 0.05}
"""How likely each of four tokens is to come next, whatever came before."""
LIKELY = {token: 80 + math.log(share) for token, share in SHARES.items()}
MOST_CHI_SQUARE = 32.9
"""Of twelve degrees of freedom, at p = 0.001."""
N_DRAWS, FEW_DRAWS = 200_000, 1600
"""Of the few, four are expected of the least frequent pair of tokens."""


def opened(path: Path, backend: str = "gguf", **fields: Any) -> Engine:
    store = fields.pop("store", None)
    spec = spec_of("model", backend, path, context=1024, parallel=2, threads=1, speculation="ngram", **fields)
    return registry.engine_of(backend)(msgspec.structs.replace(spec, store=store), lambda _: None)


def test_drafts_from_the_text_itself(backend: str, canary_model: Path, full_counts: bool) -> None:
    engine = opened(canary_model, backend)
    n_draws = (N_DRAWS if backend == "gguf" else 2 * FEW_DRAWS) if full_counts else FEW_DRAWS

    assert check(engine, n_draws)["ngram"] > 0.1 * n_draws


def test_drafts_of_a_model(canary_path: Path, tmp_path: Path, full_counts: bool) -> None:
    likeliest = canary_p.build(tmp_path / "draft.gguf", always=CYCLE[0])
    engine = opened(canary_path, draft=DraftFiles("draft", str(likeliest)))
    n_draws = N_DRAWS if full_counts else FEW_DRAWS

    assert check(engine, n_draws)["model"] > 0.1 * n_draws


def test_drafts_of_a_layer_that_predicts(tmp_path: Path, full_counts: bool) -> None:
    engine = opened(canary_mtp.build(tmp_path / "mtp.gguf", always=CYCLE[0]), mtp=True)
    n_draws = N_DRAWS if full_counts else FEW_DRAWS

    assert check(engine, n_draws)["mtp"] > 0.1 * n_draws


def test_drafts_from_cached_texts(canary_path: Path, tmp_path: Path, full_counts: bool) -> None:
    engine = opened(canary_path, store=Store(str(tmp_path / "store"), 4 << 20))
    n_draws = N_DRAWS if full_counts else FEW_DRAWS

    assert check(engine, n_draws, n_tokens=40)["cache"] > 0.02 * n_draws


def test_tokens_between_which_a_grammar_leaves_no_choice(canary_path: Path, full_counts: bool) -> None:
    letters = "".join(re.escape(canary_p.PIECES[token].decode()) for token in SHARES)
    engine = opened(canary_path)
    n_draws = N_DRAWS if full_counts else FEW_DRAWS

    found = check(engine, n_draws, n_tokens=800, each=2, constraint=Pattern(f"([{letters}]-)*"))

    assert found["grammar"] > 0.9 * n_draws


def check(engine: Engine, n_draws: int, *, n_tokens: int = 800, each: int = 1, **fields: Any) -> Counter[str]:
    """Draw so often, a token of every `each`; the drafted tokens that came true, by drafter."""
    followed: Counter[tuple[int, int]] = Counter()
    came_true = Counter[str]()
    for number in range(n_draws * each // n_tokens):
        sampling = Sampling(temperature=1, seed=number, logit_bias=LIKELY)
        asked = TokenPrompt([CYCLE[0]] * 4)
        job = Generate(f"j{number}", asked, sampling=sampling, max_tokens=n_tokens, logprobs=0, **fields)

        told, accepted = run(engine, job)

        followed.update(pairwise([canary_p.IDS[entry.bytes] for entry in told.logprobs()][::each]))
        came_true += accepted
    engine.close()

    counts = {one: sum(followed[one, other] for other in SHARES) for one in SHARES}
    expected = {(one, other): counts[one] * SHARES[other] for one in SHARES for other in SHARES}
    chi_square = sum((followed[pair] - value) ** 2 / value for pair, value in expected.items())
    assert 0.95 * n_draws < sum(counts.values()) == followed.total()
    print(f"chi-square {chi_square:.1f} of {followed.total()} draws, came true: {dict(came_true)}")
    assert chi_square < MOST_CHI_SQUARE
    return came_true
