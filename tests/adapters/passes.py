"""Passes of a loaded model with adapters, written by hand; and the options that name adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def options(folders: Mapping[str, Path]) -> dict[str, Any]:
    """As the server writes them."""
    return {"adapters": json.dumps({name: str(path) for name, path in folders.items()})}


def prompts_of(n: int) -> list[list[int]]:
    """Tokens of the demo's vocabulary, of several lengths."""
    rng = np.random.default_rng(7)
    return [rng.integers(1, 1190, size=5 + 3 * place).tolist() for place in range(n)]


def together(engine: Any, prompts: Sequence[Sequence[int]], adapters: Sequence[str]) -> list[NDArray[np.float32]]:
    """One pass over all prompts, each with its adapter: the logits of every token, `(n_tokens, n_vocab)` each."""
    context, row = engine._context, 0
    for slot, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
        context.adapt(slot, adapter)
        end = row + len(prompt)
        context.tokens[row:end] = prompt
        context.positions[row:end] = range(len(prompt))
        context.sequences[row:end] = slot
        row = end
    context.outputs[:row] = 1
    assert context.decode(row) == 0
    logits = context.logits(row).copy()
    for slot in range(len(prompts)):
        context.clear(slot)
        context.adapt(slot, "")
    borders = np.cumsum([len(prompt) for prompt in prompts])[:-1]
    return np.split(logits, borders)
