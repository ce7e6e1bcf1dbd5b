"""One tensor of the file to be written: where its numbers come from and what happens to them on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from quantize.errors import QuantizeError
from quantize.hf.safetensors import Shard, Stored
from quantize.words import shown

CHUNK_BYTES: Final = 2**20
"""Read, cast and written at once: it stays in the processor's cache, and the allocator keeps its pages."""
F16_MAX: Final = 65504.0


class Dtype(Enum):
    """Number types a conversion writes; llama.cpp's quantiser makes the others from these."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"

    @property
    def n_bytes(self) -> int:
        """Bytes of one number."""
        return 4 if self is Dtype.F32 else 2


Rearrange = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Moves the numbers of a whole tensor, whatever their type."""


@dataclass(frozen=True)
class Planned:
    """A tensor of the output."""

    name: str
    shape: tuple[int, ...]
    """As numpy has it, rows first."""
    dtype: Dtype
    source: Stored | npt.NDArray[np.float32]
    rearrange: Rearrange | None = None
    add: float = 0.0
    """Added to every number; Gemma's norms are stored around zero."""

    @property
    def n_bytes(self) -> int:
        """Bytes in the output, without padding."""
        return math.prod(self.shape) * self.dtype.n_bytes


def chunks(planned: Planned, shard: Shard | None, *, allow_nan: bool) -> Iterator[memoryview]:
    """The bytes of a tensor, a few MiB at a time. Raises QuantizeError for numbers that are none or do not fit."""
    if isinstance(planned.source, np.ndarray):
        yield _bytes_of(_cast(planned.source, planned, allow_nan=allow_nan))
        return
    assert shard is not None
    for values in _pieces(planned, planned.source, shard):
        if planned.dtype is Dtype.BF16 and planned.source.dtype == "BF16" and not planned.add:
            if not allow_nan and has_special(values, 0x7F80):
                _refuse(planned, widen(values, "BF16"))
            yield _bytes_of(values)
        else:
            yield _bytes_of(_cast(widen(values, planned.source.dtype), planned, allow_nan=allow_nan))


def _pieces(planned: Planned, stored: Stored, shard: Shard) -> Iterator[npt.NDArray[Any]]:
    if planned.rearrange is not None:
        whole = planned.rearrange(shard.rows(stored))
        rows = max(1, CHUNK_BYTES // max(1, whole[:1].nbytes))
        for first in range(0, len(whole), rows):
            yield whole[first : first + rows]
        return
    row_bytes = max(1, stored.n_bytes // max(1, stored.shape[0]))
    rows = max(1, CHUNK_BYTES // row_bytes)
    for first in range(0, planned.shape[0], rows):
        yield shard.rows(stored, first, min(rows, planned.shape[0] - first))


def widen(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Stored numbers as floats that numpy can compute with: BF16 becomes float32."""
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def _cast(values: npt.NDArray[Any], planned: Planned, *, allow_nan: bool) -> npt.NDArray[Any]:
    if planned.add:
        values = values.astype(np.float32) + np.float32(planned.add)
    if planned.dtype is Dtype.F16:
        return _to_f16(values, planned, allow_nan=allow_nan)
    if not allow_nan:
        with np.errstate(all="ignore"):
            total = np.add.reduce(values, axis=None, dtype=np.float32)
        if not np.isfinite(total) and not np.isfinite(values).all():
            _refuse(planned, values)
    wide = values.astype(np.float32, copy=False)
    return to_bf16(wide) if planned.dtype is Dtype.BF16 else wide


def _to_f16(values: npt.NDArray[Any], planned: Planned, *, allow_nan: bool) -> npt.NDArray[np.float16]:
    """One look at the result finds what was no number and what became none."""
    with np.errstate(over="ignore", invalid="ignore"):
        result = values.astype(np.float16, copy=False)
    if not has_special(result.view(np.uint16), 0x7C00):
        return result
    finite = np.isfinite(values)
    if not allow_nan and not finite.all():
        _refuse(planned, values)
    largest = float(np.abs(values, dtype=np.float64, where=finite, out=np.zeros(values.shape)).max())
    if largest > F16_MAX:
        raise QuantizeError(
            f"tensor {shown(planned.name)} holds {largest:.3g}, more than F16 can ({F16_MAX:.0f}). "
            "hint: --to BF16 or F32"
        )
    return result


def has_special(bits: npt.NDArray[np.uint16], exponent: int) -> bool:
    """Some number of a 16-bit type has all bits of its exponent set: NaN or infinite."""
    return bits.size > 0 and int(np.bitwise_and(bits, 0x7FFF).max()) >= exponent


def to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Float32 rounded to the nearest BF16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(nan, (bits >> 16) | 64, rounded).astype(np.uint16)


def _refuse(planned: Planned, values: npt.NDArray[Any]) -> None:
    n_nan, n_inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    raise QuantizeError(
        f"tensor {shown(planned.name)} holds numbers that are none ({n_nan} NaN, {n_inf} infinite in one piece of it): "
        "the weights are damaged. hint: --allow-nan converts them as they are"
    )


def _bytes_of(values: npt.NDArray[Any]) -> memoryview:
    contiguous = np.ascontiguousarray(values)
    view: memoryview = contiguous.reshape(-1).view(np.uint8).data
    return view
