"""Writes a safetensors file tensor by tensor; the header is known before the first number is.

Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantize.hf.safetensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Written:
    """One tensor of a file that is to be written."""

    name: str
    dtype: str
    """As the format calls it."""
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[bytes | memoryview]]
    """Its numbers in order, a few MiB at a time; called once."""

    @property
    def n_bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write(path: Path, tensors: Sequence[Written]) -> None:
    """Write the file; no more than one piece is in memory. Raises OSError."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in tensors:
        table[one.name] = {"dtype": one.dtype, "shape": one.shape, "data_offsets": [end, end + one.n_bytes]}
        end += one.n_bytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for one in tensors:
            for piece in one.pieces():
                file.write(piece)
