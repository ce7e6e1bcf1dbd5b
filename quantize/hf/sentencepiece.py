"""Reads a SentencePiece `tokenizer.model` (a protocol buffer) without the library: pieces, scores, kinds, prefix rule.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.files import model_files
from quantize.errors import QuantizeError

MAX_BYTES: Final = 64 * 2**20
_BPE: Final = 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KINDS: Final = range(1, 7)
"""NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE: the same numbers as GGUF's."""


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What a conversion needs of the file."""

    pieces: list[Piece]
    add_dummy_prefix: bool


def read(path: Path) -> SentencePieceModel:
    """Raises QuantizeError for a damaged file and for models that are not BPE."""
    try:
        raw = model_files.read_bytes(path, MAX_BYTES)
    except model_files.FileError as error:
        raise QuantizeError(str(error)) from None
    pieces: list[Piece] = []
    add_dummy_prefix, model_type = True, 1
    try:
        for number, value in _fields(raw):
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                model_type = next((int(v) for n, v in _fields(value) if n == 3 and isinstance(v, int)), 1)
            elif number == 3 and isinstance(value, bytes):
                add_dummy_prefix = next((bool(v) for n, v in _fields(value) if n == 3), True)
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        raise QuantizeError(f"{path.name} is no SentencePiece model, or is cut") from None
    if model_type != _BPE or not pieces:
        raise QuantizeError(f"{path.name} is no BPE vocabulary; other kinds of SentencePiece need a tokenizer.json")
    return SentencePieceModel(pieces, add_dummy_prefix)


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif number == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif number == 3 and isinstance(value, int):
            kind = value
    if kind not in _KINDS:
        raise ValueError(kind)
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of one message; fixed-width values as their bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(wire)
        if at + length > len(data):
            raise ValueError(length)
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(at)
