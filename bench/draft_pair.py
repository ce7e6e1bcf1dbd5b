"""A pair of models of which the small one drafts for the large one, and is right as often as is asked for.

Both say after each token what a table has for it: embeddings are one-hot, every layer adds zero, and the output matrix
is the table. So the large one computes as much as any model of its shape, and the pair agrees exactly as often as the
two tables do.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from bench.model import OUT, Shape, describe, is_text

TARGET: Final = Shape(n_layers=16, n_embd=1024, n_heads=16, n_heads_kv=4, n_ff=4096, n_vocab=1024)
"""205 M parameters."""
DRAFT: Final = replace(TARGET, n_layers=1, n_ff=256)
LOGIT: Final = 64.0
"""Of the token that follows, against 0 of all others."""


def path(agreement: float, kind: Type = Type.F32) -> tuple[Path, Path]:
    """The files of both, made on the first call. In 32 bits a step waits for its weights, as on a card."""
    folder = OUT / f"pair-{agreement:g}-{kind.name.lower()}"
    if not folder.exists():
        part = folder.with_suffix(".part")
        part.mkdir(parents=True, exist_ok=True)
        write(part, agreement=agreement, kind=kind)
        part.rename(folder)
    return folder / f"target-{kind.name.lower()}.gguf", folder / "draft.gguf"


def write(
    folder: Path, *, agreement: float = 0.8, target: Shape = TARGET, draft: Shape = DRAFT, kind: Type = Type.F16
) -> tuple[Path, Path]:
    """Write both, the large one with layers of type `kind`."""
    large, small = folder / f"target-{kind.name.lower()}.gguf", folder / "draft.gguf"
    rng = random.Random(7)
    following = _write(large, target, kind, lambda spoken: shuffled(spoken, rng))
    _write(small, draft, Type.F16, lambda spoken: altered(following, spoken, 1 - agreement, rng))
    return large, small


def shuffled(spoken: list[int], rng: random.Random) -> dict[int, int]:
    """What follows each of these tokens: a ring through all of them."""
    ring = rng.sample(spoken, len(spoken))
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


def altered(following: dict[int, int], spoken: list[int], share: float, rng: random.Random) -> dict[int, int]:
    """The same, but that a share of them has another one behind it."""
    others = set(rng.sample(spoken, round(share * len(spoken))))
    return {token: rng.choice(spoken) if token in others else following[token] for token in spoken}


def _write(path: Path, shape: Shape, kind: Type, table: Callable[[list[int]], dict[int, int]]) -> dict[int, int]:
    writer = gguf.GGUFWriter(path, "llama")
    tokens = describe(writer, shape)
    spoken = np.flatnonzero(is_text(tokens)).tolist()
    following = table(spoken)
    output = np.zeros((shape.n_vocab, shape.n_embd), np.float16)
    for token in range(shape.n_vocab):
        output[following.get(token, spoken[token % len(spoken)]), token] = LOGIT / shape.n_embd**0.5
    writer.add_tensor("token_embd.weight", np.eye(shape.n_vocab, shape.n_embd, dtype=np.float16))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", np.ones(shape.n_embd, np.float32))
    keys = shape.n_heads_kv * shape.head_size
    matrices = {
        "attn_q": (shape.n_embd, shape.n_embd),
        "attn_k": (keys, shape.n_embd),
        "attn_v": (keys, shape.n_embd),
        "attn_output": (shape.n_embd, shape.n_embd),
        "ffn_gate": (shape.n_ff, shape.n_embd),
        "ffn_up": (shape.n_ff, shape.n_embd),
        "ffn_down": (shape.n_embd, shape.n_ff),
    }
    for layer in range(shape.n_layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(shape.n_embd, np.float32))
        for name, (rows, columns) in matrices.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", *_zeros(rows, columns, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return following


def _zeros(rows: int, columns: int, kind: Type) -> tuple[NDArray[Any], None, Type | None]:
    """A matrix as `add_tensor` takes it."""
    if kind in (Type.F32, Type.F16):
        return np.zeros((rows, columns), np.float32 if kind is Type.F32 else np.float16), None, None
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    return np.zeros((rows, columns // n_weights * n_bytes), np.uint8), None, kind
