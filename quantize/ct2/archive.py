"""Reads CTranslate2's `model.bin`: names, shapes and places of its variables, every number held against the file.

Format: https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backends.files import model_files
from quantize.errors import QuantizeError

_TYPES: Final[Mapping[int, tuple[str, int]]] = MappingProxyType(
    {0: ("F32", 4), 1: ("I8", 1), 2: ("I16", 2), 3: ("I32", 4), 4: ("F16", 2), 5: ("BF16", 2)}
)
"""Number of a type -> safetensors' name of it, bytes of a value."""
_VERSIONS: Final = range(4, 10)
_MOST_VARIABLES: Final = 100_000
_MOST_RANK: Final = 8


@dataclass(frozen=True)
class Variable:
    """One array in the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it."""
    start: int
    n_bytes: int


@dataclass(frozen=True)
class Archive:
    """What is in a `model.bin`."""

    path: Path
    spec: str
    """`WhisperSpec` and others."""
    variables: Mapping[str, Variable]
    """By name, aliases among them."""


class _Cursor:
    def __init__(self, file: model_files.ModelFile) -> None:
        self._file = file
        self.at = 0

    def number(self, form: str) -> int:
        size = struct.calcsize(form)
        raw = self._file.at(self.at, size)
        if len(raw) < size:
            raise _damaged("it ends in the middle of its table")
        self.at += size
        value: int = struct.unpack(f"<{form}", raw)[0]
        return value

    def text(self) -> str:
        size = self.number("H")
        raw = self._file.at(self.at, size)
        self.at += size
        if len(raw) < size or not raw.endswith(b"\0"):
            raise _damaged("a name in it has no end")
        return raw[:-1].decode("utf-8", "replace")


def read(path: Path) -> Archive:
    """The table of the file; no array is read. Raises QuantizeError."""
    try:
        with model_files.opened(path) as file:
            return _read(path, file)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None


def _read(path: Path, file: model_files.ModelFile) -> Archive:
    cursor = _Cursor(file)
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise QuantizeError(f"{path.name} is of version {version}, which is none that CTranslate2 writes for Whisper")
    spec = cursor.text()
    cursor.number("I")  # the spec's own revision
    n_variables = cursor.number("I")
    if n_variables > _MOST_VARIABLES:
        raise _damaged(f"it announces {n_variables} variables")
    found: dict[str, Variable] = {}
    for _ in range(n_variables):
        name, rank = cursor.text(), cursor.number("B")
        if rank > _MOST_RANK:
            raise _damaged(f"{model_files.shown(name)} has {rank} dimensions")
        shape = tuple(cursor.number("I") for _ in range(rank))
        number, n_bytes = cursor.number("B"), cursor.number("I")
        dtype, size = _TYPES.get(number, ("", 0))
        if not dtype or math.prod(shape) * size != n_bytes or cursor.at + n_bytes > file.size:
            raise _damaged(f"{model_files.shown(name)} does not fit into it")
        found[name] = Variable(name, shape, dtype, cursor.at, n_bytes)
        cursor.at += n_bytes
    for _ in range(cursor.number("I")):
        alias, name = cursor.text(), cursor.text()
        if name in found:
            found[alias] = found[name]
    return Archive(path, spec, found)


def _damaged(why: str) -> QuantizeError:
    return QuantizeError(f"model.bin is damaged: {why}. hint: was it downloaded completely?")
