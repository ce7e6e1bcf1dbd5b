"""Every architecture gives transformers' own logits, however its prompt is cut and whatever is beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from backends.bnb.loading import load
from backends.engine import Engine
from tests.quantize.zoo import ZOO, build
from tests.specs import spec_of

pytestmark = pytest.mark.engine

DECODERS = [name for name in ZOO if name != "bert"]
N_TOKENS = 300


@pytest.fixture(scope="module", params=[*DECODERS, "mistral-windowed"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name = request.param.removesuffix("-windowed")
    more: dict[str, Any] = {"sliding_window": 40} if request.param.endswith("-windowed") else {}
    return build(name, tmp_path_factory.mktemp(request.param), **more)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = load(spec_of("zoo", "bnb", str(folder), context=448, parallel=3), lambda _: None)
    yield engine
    engine.close()


def logits_of(engine: Any, parts: list[list[tuple[int, np.ndarray, int]]]) -> list[np.ndarray]:
    """The last logits of each pass; a pass is `(slot, tokens, past)` of every row in it."""
    context, found = engine._context, []
    for rows in parts:
        at = 0
        for slot, tokens, past in rows:
            end = at + len(tokens)
            context.tokens[at:end], context.sequences[at:end] = tokens, slot
            context.positions[at:end] = np.arange(past, past + len(tokens))
            context.outputs[at:end] = 0
            context.outputs[end - 1] = 1
            at = end
        assert context.decode(at) == 0
        found.append(context.logits(len(rows)).copy())
    return found


def test_logits_are_those_of_transformers(engine: Any, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, model.config.get_text_config().vocab_size, N_TOKENS).astype(np.int32)
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens).long()[None]).logits[0].numpy()

    (whole,) = logits_of(engine, [[(0, tokens, 0)]])
    cut = logits_of(engine, [[(1, tokens[:37], 0)], [(1, tokens[37:64], 37)], [(1, tokens[64:], 64)]])
    one_by_one = logits_of(
        engine, [[(2, tokens[:250], 0)], *([(2, tokens[i : i + 1], i)] for i in range(250, N_TOKENS))]
    )
    for slot in range(3):
        engine._context.clear(slot)

    np.testing.assert_allclose(whole[-1], wanted[-1], atol=2e-3)
    assert np.array_equal(cut[-1][-1], whole[-1])
    for index, step in enumerate(one_by_one):
        np.testing.assert_allclose(step[-1], wanted[249 + index], atol=2e-3)


def test_neighbours_change_nothing(engine: Any) -> None:
    rng = np.random.default_rng(5)
    texts = [rng.integers(3, 60, n).astype(np.int32) for n in (90, 41, 200)]
    alone = []
    for text in texts:
        steps = logits_of(engine, [[(0, text, 0)], *([(0, text[:1], len(text) + i)] for i in range(8))])
        alone.append([step[-1] for step in steps])
        engine._context.clear(0)

    first = logits_of(engine, [[(slot, text, 0) for slot, text in enumerate(texts)]])
    later = logits_of(engine, [[(slot, text[:1], len(text) + i) for slot, text in enumerate(texts)] for i in range(8)])
    for slot in range(3):
        engine._context.clear(slot)

    for slot in range(3):
        for step, together in enumerate([*first, *later]):
            assert np.array_equal(together[slot], alone[slot][step]), (slot, step)
