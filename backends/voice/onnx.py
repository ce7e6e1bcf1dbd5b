"""What an ONNX file says about itself: its inputs, its outputs and its weights' bytes, by a walk over its protobuf.

Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Nothing of the file is run, and no library is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError

if TYPE_CHECKING:
    from collections.abc import Iterator

_GRAPH: Final = 7
_NAME: Final = 1
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12
_ELSEWHERE: Final = b"\x0a\x08location"
"""How an entry begins that names another file for a tensor's values."""
_MOST_FIELDS: Final = 1_000_000


@dataclass(frozen=True)
class OnnxFile:
    """One file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_bytes: int
    n_weights: int


def read(data: bytes) -> OnnxFile:
    """Read and check. Raises HeaderError where it is no ONNX file, or names other files."""
    if _ELSEWHERE in data:
        raise HeaderError("its weights are in another file. hint: export it as one file")
    whole = memoryview(data)
    graph = next((value for number, value in _fields(whole) if number == _GRAPH and value), None)
    if graph is None:
        raise HeaderError("it is no ONNX file")
    names: dict[int, list[str]] = {_INPUT: [], _OUTPUT: []}
    weights = n_weights = 0
    for number, value in _fields(graph):
        if number in names:
            names[number].append(_name(value))
        elif number == _INITIALIZER:
            weights += len(value)
            n_weights += 1
    return OnnxFile(tuple(names[_INPUT]), tuple(names[_OUTPUT]), weights, n_weights)


def _name(value: memoryview) -> str:
    """Of an input or output."""
    found = next((bytes(text) for number, text in _fields(value) if number == _NAME), b"")
    return found.decode("utf-8", "replace")


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Each field's number and bytes; numbers, which are not needed, as empty ones. Raises HeaderError."""
    at = 0
    for _ in range(_MOST_FIELDS):
        if at >= len(data):
            return
        key, at = _varint(data, at)
        match key & 7:
            case 0:  # a number
                _, at = _varint(data, at)
                yield key >> 3, data[0:0]
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                if size > len(data) - at:
                    raise HeaderError("it is no ONNX file, or a part of one. hint: was it downloaded completely?")
                yield key >> 3, data[at : at + size]
                at += size
            case 5:
                at += 4
            case _:
                raise HeaderError("it is no ONNX file")
    raise HeaderError(f"it has more than {_MOST_FIELDS} fields")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises HeaderError."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise HeaderError("it is no ONNX file, or a part of one. hint: was it downloaded completely?")
