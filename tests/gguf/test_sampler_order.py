"""Both backends narrow a row as llama.cpp does: its own samplers over the same logits, and ours over numpy rows."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np
import pytest

from backends.bnb import narrowing
from backends.bnb.dry import Dry, breakers_of
from backends.bnb.sampling import NARROWING, RowSampler
from backends.generation.sampler_order import STAGES, stages
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.gguf.sampling import MAKERS, chain_of
from backends.messages import Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.engine

ROUNDING = 2e-4
"""llama.cpp adds in float32."""
ALONE = [
    {"typical_p": 0.2},
    {"typical_p": 0.7},
    {"typical_p": 0.999},
    {"top_n_sigma": 0.5},
    {"top_n_sigma": 2.0},
    {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"xtc_probability": 1.0, "xtc_threshold": 0.3},
    {"xtc_probability": 1.0, "xtc_threshold": 0.6},
    {"dynatemp_range": 0.5},
    {"dynatemp_range": 1.0, "dynatemp_exponent": 2.0, "temperature": 0.6},
    {"dynatemp_range": 1.0, "temperature": 0.0},
    {"dynatemp_range": 1.0, "dynatemp_exponent": 5.0},
    {"temperature": 0.3},
    {"top_k": 40, "dynatemp_range": 0.8, "typical_p": 0.9, "top_p": 0.95, "min_p": 0.02},
    {"top_n_sigma": 1.5, "top_k": 30, "temperature": 1.5, "xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"top_n_sigma": 1.0, "typical_p": 0.5, "top_p": 0.9},
]


@pytest.fixture(scope="module")
def model(canary_path: Path) -> Iterator[Model]:
    log = LibraryLog()
    log.install()
    loaded = Model(canary_path, gpu_layers=0, log=log)
    yield loaded
    loaded.close()


def rows(n_vocab: int) -> list[NDArray[np.float32]]:
    made = [
        (np.random.default_rng(seed).standard_normal(n_vocab) * spread).astype(np.float32)
        for seed, spread in enumerate((0.3, 1.0, 2.0, 4.0, 12.0))
    ]
    forbidden = made[2].copy()
    forbidden[::3] = -np.inf
    certain = np.zeros(n_vocab, dtype=np.float32)
    certain[7] = 60.0
    return [*made, forbidden, certain]


class Theirs:
    """A chain of llama.cpp's own samplers, applied to rows."""

    def __init__(self, sampling: Sampling, model: Model, prompt: list[int]) -> None:
        order = [stage for stage in stages(sampling) if stage not in ("draw", "greedy")]
        self.chain = chain_of(order, sampling, model=model, prompt=prompt, choice=0)

    def apply(self, row: NDArray[np.float32]) -> tuple[dict[int, float], int]:
        """What is left with its shares, and what was selected."""
        data = (llama_cpp.llama_token_data * row.size)()
        for token, logit in enumerate(row.tolist()):
            data[token].id, data[token].logit, data[token].p = token, logit, 0.0
        array = llama_cpp.llama_token_data_array(data, row.size, -1, False)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        left = [(array.data[i].id, array.data[i].logit) for i in range(array.size)]
        chosen = array.data[array.selected].id if array.selected >= 0 else -1
        return shares_of([one for one, _ in left], np.array([logit for _, logit in left], dtype=np.float32)), chosen

    def accept(self, token: int) -> None:
        llama_cpp.llama_sampler_accept(self.chain, token)

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self.chain)


def shares_of(ids: list[int], values: NDArray[np.float32]) -> dict[int, float]:
    return {token: share for token, share in zip(ids, narrowing.shares(values).tolist(), strict=True) if share > 0}


def same(ours: dict[int, float], theirs: dict[int, float]) -> None:
    """Equal but for tokens that a rounding has kept or left."""
    for token in ours.keys() | theirs.keys():
        assert ours.get(token, 0.0) == pytest.approx(theirs.get(token, 0.0), abs=ROUNDING), token


def test_every_stage_has_its_maker_on_both_backends() -> None:
    edits_and_ends = {"logit_bias", "repetition", "presence_and_frequency", "dry", "greedy", "draw", "mirostat"}

    assert set(MAKERS) == set(STAGES)
    assert set(NARROWING) == set(STAGES) - edits_and_ends


@pytest.mark.parametrize("fields", ALONE, ids=str)
def test_a_row_is_narrowed_as_llama_cpp_narrows_it(model: Model, fields: dict[str, float]) -> None:
    sampling = Sampling(**fields)  # type: ignore[arg-type]
    chain = Theirs(sampling, model, [])
    for row in rows(model.n_vocab):
        ours = RowSampler(sampling, prompt=(), choice=0, row_of=lambda _: np.empty(0, dtype=np.float32))
        ids, values = ours.narrowed(row.copy())
        same(shares_of(ids.tolist(), values), chain.apply(row)[0])
    chain.close()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tau", [1.0, 3.0, 5.0])
def test_mirostat_follows_llama_cpp_token_by_token(model: Model, version: int, tau: float) -> None:
    chain = Theirs(Sampling(mirostat=version, mirostat_tau=tau, seed=3), model, [])
    ours = narrowing.Mirostat(version, tau, 0.1, model.n_vocab)
    for row in rows(model.n_vocab) * 5:
        theirs, chosen = chain.apply(row)
        order = np.argsort(-row, kind="stable")
        values = row[order]
        values = values[: narrowing.n_possible(values)]
        kept = values[: ours.n_kept(values)]
        mine = shares_of(order[: kept.size].tolist(), kept)
        if len(mine) == len(theirs):
            same(mine, theirs)
        elif kept.size < row.size:  # float32 moves the border by one, and beyond the whole row its int32 overflows
            assert abs(len(mine) - len(theirs)) == 1
        ours.drawn(theirs[chosen])
    chain.close()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"dry_allowed_length": 0},
        {"dry_allowed_length": 4, "dry_base": 1.1},
        {"dry_penalty_last_n": 20},
        {"dry_penalty_last_n": 3},
        {"dry_base": 1.0},
        {"dry_sequence_breakers": ()},
        {"dry_sequence_breakers": ("bc", "e", "ab")},
    ],
    ids=str,
)
def test_repetitions_cost_what_they_cost_in_llama_cpp(model: Model, fields: dict[str, object]) -> None:
    sampling = Sampling(dry_multiplier=0.8, **fields)  # type: ignore[arg-type]
    row = np.zeros(model.n_vocab, dtype=np.float32)
    for text in (
        "abcdabcdabc",
        "aaaaaaaaaaaa",
        "xyz:xyz:xy",
        "one\ntwo one\ntwo one\n",
        "a",
        "",
        "abcabcabcabcabcabcd",
    ):
        prompt = model.tokenize(text, parse_special=False)
        chain = Theirs(sampling, model, prompt)
        ours = Dry(sampling, prompt, breakers_of(sampling.dry_sequence_breakers, model))
        for token in [*prompt[:7], *prompt[:3]]:
            mine = row.copy()
            ours.edit(mine)
            same(shares_of(list(range(mine.size)), mine), chain.apply(row)[0])
            chain.accept(token)
            ours.add(token)
        chain.close()


def test_a_very_long_repetition_leaves_finite_numbers(model: Model) -> None:
    sampling = Sampling(dry_multiplier=1.0, dry_sequence_breakers=())
    ours = Dry(sampling, [5] * 3000, {})
    row = np.zeros(model.n_vocab, dtype=np.float32)

    ours.edit(row)

    assert row[5] < -1e30
    assert np.isfinite(row).all()
