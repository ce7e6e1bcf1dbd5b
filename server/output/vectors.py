"""Rows of float32 as they come from a worker, and the JSON they end in: numbers or base64, a slice at a time.

A row is bytes until it is written: a list of Python floats is twenty times as large, and there is one slice of it.
"""

from __future__ import annotations

import array
import binascii
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from server.output.frame import to_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.messages import Embedded

FLOAT_BYTES: Final = 4
SLICE_NUMBERS: Final = 8192
"""Numbers that are written at once: about a millisecond."""


@dataclass
class Rows:
    """The rows of one request, put in their places as they come."""

    n: int
    dimensions: int = 0
    data: bytearray = field(default_factory=bytearray)
    """`(n, dimensions)` float32, little endian."""

    def put(self, event: Embedded, first: int) -> None:
        """Take in the rows of the job whose inputs begin at `first`."""
        if not self.data:
            self.dimensions = event.dimensions
            self.data = bytearray(self.n * event.dimensions * FLOAT_BYTES)
        size = self.dimensions * FLOAT_BYTES
        source = memoryview(event.vectors)
        for row, place in enumerate(event.inputs):
            start = (first + place) * size
            self.data[start : start + size] = source[row * size : (row + 1) * size]

    def row(self, place: int) -> memoryview:
        """The bytes of one row."""
        size = self.dimensions * FLOAT_BYTES
        return memoryview(self.data)[place * size : (place + 1) * size]

    def numbers(self) -> list[float]:
        """All numbers, for rows that hold one each."""
        return array.array("f", bytes(self.data)).tolist()


def embedding_body(rows: Rows, *, model: str, n_tokens: int, as_base64: bool) -> Iterator[bytes]:
    """OpenAI's list of embeddings in slices that are quick to make."""
    yield b'{"object":"list","data":['
    for places in _slices(rows):
        yield b"".join(_item(rows, place, as_base64=as_base64) for place in places)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    yield b'],"model":' + to_json(model) + b',"usage":' + to_json(usage) + b"}"


def ollama_body(rows: Rows, *, model: str, figures: Mapping[str, int]) -> Iterator[bytes]:
    """Ollama's list of vectors in such slices."""
    yield b'{"model":' + to_json(model) + b',"embeddings":['
    for places in _slices(rows):
        yield b"".join((b"," if place else b"") + _numbers(rows.row(place)) for place in places)
    yield b"]," + to_json(figures)[1:]


def _slices(rows: Rows) -> Iterator[range]:
    """The places of the rows, as many at a time as are quick to write."""
    per_slice = max(1, SLICE_NUMBERS // max(1, rows.dimensions))
    for start in range(0, rows.n, per_slice):
        yield range(start, min(rows.n, start + per_slice))


def _numbers(row: memoryview) -> bytes:
    return to_json(array.array("f", bytes(row)).tolist())


def _item(rows: Rows, place: int, *, as_base64: bool) -> bytes:
    row = rows.row(place)
    written = b'"' + binascii.b2a_base64(row, newline=False) + b'"' if as_base64 else _numbers(row)
    comma = b"," if place else b""
    return b'%b{"object":"embedding","embedding":%b,"index":%d}' % (comma, written, place)
