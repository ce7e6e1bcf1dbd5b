"""Hugging Face folder to a bitsandbytes folder: what it will weigh, and the making in a child process."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from quantize import child
from quantize.errors import QuantizeError
from quantize.files import copy_beside_weights, replacing
from quantize.hf.safetensors import FLOATS, Stored
from quantize.hf.source import HfSource
from quantize.hf.tensor import Dtype, Planned, chunks

_ABSMAX_BYTES: Final = 4 / 64
"""4-bit: one float32 scale per 64 weights."""
_KEPT: Final = (
    "embed_tokens",
    "lm_head",
    "wte",
    "wpe",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
)
"""Matrices that stay as they are: embeddings and the head."""


def outcome_bytes(source: HfSource, type_name: str) -> int:
    """Bytes of the weights after quantisation, from the shapes: linear layers shrink, everything else stays."""
    return sum(_bytes_after(stored, type_name) for stored in source.tensors.values())


def _bytes_after(stored: Stored, type_name: str) -> int:
    n = math.prod(stored.shape)
    if len(stored.shape) != 2 or any(part in stored.name for part in _KEPT):
        return stored.n_bytes
    if type_name == "bnb-8bit":
        return n + 4 * stored.shape[0]
    return math.ceil(n / 2 + n * _ABSMAX_BYTES)


def quantize(source: HfSource, target: Path, type_name: str, *, allow_nan: bool = False) -> None:
    """Write the folder whole or not at all. Raises QuantizeError; a NaN weight is named."""
    if not allow_nan:
        check_weights(source)
    with replacing(target) as temporary:
        temporary.mkdir()
        request = {"source": str(source.path.resolve()), "target": str(temporary), "type": type_name}
        child.run("quantize.bnb_main", request, lambda message: None)
        copy_beside_weights(source.path, temporary)
        if not (temporary / "config.json").is_file() or not any(temporary.glob("*.safetensors")):
            raise QuantizeError(f"transformers wrote no weights for {type_name}")


def check_weights(source: HfSource) -> None:
    """Read every number once. Raises QuantizeError naming the first tensor with NaN or infinity."""
    for stored in source.tensors.values():
        if stored.dtype in FLOATS and stored.shape:
            planned = Planned(stored.name, stored.shape, Dtype.BF16 if stored.dtype == "BF16" else Dtype.F32, stored)
            for _ in chunks(planned, source.shards[stored.file], allow_nan=False):
                pass
