"""Reads safetensors files lazily: every offset is checked against the file before a byte of a tensor is read.

Owns the format and its limits, and the number types as numpy sees them. It reads with `pread` and does not map: a
mapped file that shrinks while it is read kills the process. Format: https://github.com/huggingface/safetensors
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from backends.files import foreign, model_files, tensor_table
from quantize.errors import QuantizeError
from quantize.words import shown

MAX_HEADER_BYTES: Final = 100 * 2**20
MAX_TENSORS: Final = 65_536
MAX_DIMENSIONS: Final = 8

DTYPES: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": np.dtype("<u2"),
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U8": np.dtype("u1"),
        "BOOL": np.dtype("u1"),
        "F8_E4M3": np.dtype("u1"),
        "F8_E5M2": np.dtype("u1"),
    }
)
"""Name in the file -> how its bytes are held; BF16 as the upper half of a float32."""

FLOATS: Final = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """Byte in the file."""
    n_bytes: int


class Shard:
    """One open file; `rows` reads a part of a tensor along its first axis."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with model_files.opened(path) as file:
                self._fd = os.dup(file.fd)
        except model_files.MissingError:
            raise QuantizeError(f"the shard {path.name} is missing") from None
        except model_files.FileError as error:
            raise QuantizeError(str(error)) from None
        try:
            self.tensors = _read_header(self._fd, path)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def rows(self, stored: Stored, first: int = 0, count: int | None = None) -> npt.NDArray[Any]:
        """Rows `[first, first + count)` of a tensor in its stored form, `(count, *shape[1:])`; all without `count`."""
        if not stored.shape:
            return self._read(stored, stored.start, stored.n_bytes).reshape(())
        count = stored.shape[0] - first if count is None else count
        row_bytes = stored.n_bytes // stored.shape[0]
        flat = self._read(stored, stored.start + first * row_bytes, count * row_bytes)
        return flat.reshape(count, *stored.shape[1:])

    def _read(self, stored: Stored, start: int, n_bytes: int) -> npt.NDArray[Any]:
        values = np.empty(n_bytes // DTYPES[stored.dtype].itemsize, DTYPES[stored.dtype])
        view = values.view(np.uint8).data
        done = 0
        while done < n_bytes:
            got = os.preadv(self._fd, [view[done:]], start + done)
            if got <= 0:
                raise QuantizeError(f"{self.path.name} was cut while it was read")
            done += got
        return values


def _read_header(fd: int, path: Path) -> dict[str, Stored]:
    status = os.fstat(fd)
    raw_length = os.pread(fd, 8, 0)
    if 0 < len(raw_length) < 8:
        raise QuantizeError(f"{path.name} has {status.st_size} bytes, too few for a safetensors file")
    length = int.from_bytes(raw_length, "little")
    start = os.pread(fd, foreign.PROBE_BYTES, 0)
    if length > MAX_HEADER_BYTES or 8 + length > status.st_size or not start.strip(b"\0"):
        raise QuantizeError(
            f"{path.name} announces a header of {length} bytes in a file of {status.st_size}: "
            f"{foreign.no_safetensors(start, status.st_size)}"
        )
    try:
        header = tensor_table.parsed(os.pread(fd, length, 8), path.name)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise QuantizeError(f"{path.name} holds {len(header)} tensors, more than {MAX_TENSORS}")
    data_start = 8 + length
    tensors = {name: _entry(name, entry, path, data_start) for name, entry in header.items()}
    spans = [tensor_table.Span(*_span(stored, data_start), stored.name) for stored in tensors.values()]
    try:
        tensor_table.check_layout(spans, status.st_size - data_start, path.name)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    return tensors


def _span(stored: Stored, data_start: int) -> tuple[int, int]:
    start = stored.start - data_start
    return start, start + stored.n_bytes


def _entry(name: str, entry: Any, path: Path, data_start: int) -> Stored:
    where = f"tensor {shown(name)} in {path.name}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise QuantizeError(f"{where} has no dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise QuantizeError(f"{where} has the unknown number type {shown(str(dtype))}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_size(n) for n in shape):
        raise QuantizeError(f"{where} has the impossible shape {shown(str(shape))}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise QuantizeError(f"{where} has impossible data_offsets")
    n_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != n_bytes:
        raise QuantizeError(f"{where} of shape {tuple(shape)} and type {dtype} needs {n_bytes} bytes, not {offsets}")
    return Stored(name, dtype, tuple(shape), path, data_start + offsets[0], n_bytes)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
