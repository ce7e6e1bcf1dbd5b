"""Reads the header of a GGUF file, version 2 or 3, in plain Python with every number checked against the file's size.

Owns the format and its limits. A file that lies is refused here with a sentence, before any C code sees it. Values of
long arrays are skipped, not built: a vocabulary of 150k tokens costs a walk over its lengths and nothing else. It reads
and does not map, because a mapped file that another program cuts kills the process with SIGBUS.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import os
import re
import struct
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.files import foreign, model_files
from backends.gguf import vocabulary
from backends.gguf.info import HeaderInfo, Tensor, Value
from backends.gguf.tensor_types import TENSOR_TYPES

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_ELEMENTS: Final = 16 * 2**20
"""Of one array."""
MAX_STRING_BYTES: Final = 16 * 2**20
MAX_KEY_BYTES: Final = 65_535
MAX_NAME_BYTES: Final = 63
"""ggml's own limit for a tensor's name."""
MAX_DIMENSIONS: Final = 4
KEPT_ELEMENTS: Final = 4096
"""Arrays of numbers up to this length keep their values: per-layer figures do, vocabularies don't."""
MAX_KEPT_BYTES: Final = 32 * 2**20
"""Of all strings that are kept."""
_MAX_INT64: Final = 2**63 - 1
_DEFAULT_ALIGNMENT: Final = 32
_WINDOW_BYTES: Final = 2**20
_AGAIN: Final = "hint: download it again"
_ALIGNMENT_KEY: Final = "general.alignment"


_SCALARS: Final[Mapping[int, struct.Struct]] = MappingProxyType(
    {
        0: struct.Struct("<B"),
        1: struct.Struct("<b"),
        2: struct.Struct("<H"),
        3: struct.Struct("<h"),
        4: struct.Struct("<I"),
        5: struct.Struct("<i"),
        6: struct.Struct("<f"),
        7: struct.Struct("<?"),
        10: struct.Struct("<Q"),
        11: struct.Struct("<q"),
        12: struct.Struct("<d"),
    }
)
_UINT32: Final = 4
_INT32: Final = 5
_STRING: Final = 8
_ARRAY: Final = 9
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


def read(path: Path) -> HeaderInfo:
    """Read and check a model file, and the other parts of a split one. Raises HeaderError; blocks on the disk."""
    first = _read_part(path)
    n_parts = first.metadata.get("split.count", 0)
    if not isinstance(n_parts, int) or n_parts <= 1:
        return first
    tensors = first.tensors
    file_bytes = first.file_bytes
    for part in _other_parts(path, n_parts):
        info = _read_part(part, is_first=False)
        tensors += info.tensors
        file_bytes += info.file_bytes
    return HeaderInfo(
        first.architecture,
        file_bytes,
        first.metadata,
        first.array_lengths,
        first.longest_token_bytes,
        tensors,
        first.infills,
    )


def _other_parts(path: Path, n_parts: int) -> list[Path]:
    match = re.fullmatch(r"(.+)-00001-of-(\d{5})\.gguf", path.name)
    if match is None or int(match[2]) != n_parts:
        raise HeaderError(
            f"the file says it is one of {n_parts} parts, but its name does not say it is the first of them"
        )
    return [path.with_name(f"{match[1]}-{i:05}-of-{match[2]}.gguf") for i in range(2, n_parts + 1)]


def _read_part(path: Path, *, is_first: bool = True) -> HeaderInfo:
    try:
        with model_files.opened(path) as file:
            start = file.at(0, foreign.PROBE_BYTES)
            if len(start) < min(foreign.PROBE_BYTES, file.size):
                raise HeaderError("the file changed while it was read")
            if not foreign.is_gguf(start):
                raise HeaderError(f"the file is not GGUF: {foreign.told(start, file.size)}")
            if file.size < 24:
                raise HeaderError(f"the file has {file.size} bytes, too few for a GGUF header. {_AGAIN}")
            return _Reader(file.fd, file.size).header(is_first=is_first)
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    except (OSError, OverflowError) as error:
        raise HeaderError(f"the file {path.name} cannot be read: {model_files.reason(error)}") from None


class _Reader:
    """A position in a file that never leaves it."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self._at = 0
        self._window = b""
        self._window_start = 0
        self._kept_bytes = 0
        self._longest_token_bytes = 0
        self._tokens: list[bytes] = []
        self._token_types = b""

    def header(self, *, is_first: bool) -> HeaderInfo:
        self._take(len(foreign.MAGIC))
        version = self._unsigned(_U32)
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            hint = ", big-endian" if swapped in (2, 3) else ""
            raise HeaderError(
                f"the file is GGUF version {swapped if hint else version}{hint}; versions 2 and 3 are read"
            )
        n_tensors = self._count(MAX_TENSORS, "tensors", least_bytes=24)
        n_keys = self._count(MAX_KEYS, "metadata keys", least_bytes=12)
        metadata, lengths = self._metadata(n_keys)
        kind = metadata.get("general.type")
        architecture = metadata.get("general.architecture", kind if kind == "imatrix" else "")
        if not isinstance(architecture, str) or (is_first and not architecture):
            raise HeaderError("the file names no architecture (general.architecture)")
        if (wrong := vocabulary.problem(self._tokens, self._token_types, metadata, lengths)) is not None:
            raise HeaderError(wrong)
        alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise HeaderError(f"{_ALIGNMENT_KEY} is {alignment!r}, not a power of two")
        tensors = self._tensors(n_tensors, alignment)
        infills = vocabulary.infills(self._tokens, metadata)
        return HeaderInfo(architecture, self._size, metadata, lengths, self._longest_token_bytes, tensors, infills)

    def _metadata(self, n_keys: int) -> tuple[dict[str, Value], dict[str, int]]:
        metadata: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_keys):
            key = self._name("a metadata key", limit=MAX_KEY_BYTES)
            if key in metadata or key in lengths:
                raise HeaderError(f"the metadata key {_shown(key)} is there twice")
            kind = self._unsigned(_U32)
            if kind != _ARRAY and (wrong := vocabulary.wrong_list(key, None)) is not None:
                raise HeaderError(wrong)
            if kind == _ARRAY:
                lengths[key], values = self._array(key)
                if values is not None:
                    metadata[key] = values
            elif key == _ALIGNMENT_KEY and kind != _UINT32:
                raise HeaderError(f"{key} is not a uint32")
            else:
                metadata[key] = self._value(kind, key)
        return metadata, lengths

    def _tensors(self, n_tensors: int, alignment: int) -> tuple[Tensor, ...]:
        entries = [self._tensor(alignment) for _ in range(n_tensors)]
        names = {tensor.name for tensor, _ in entries}
        if len(names) != len(entries):
            raise HeaderError("two tensors have the same name")
        data_start = -(-self._at // alignment) * alignment
        for tensor, offset in entries:
            end = data_start + offset + tensor.n_bytes
            if end > self._size:
                raise HeaderError(
                    f"tensor {_shown(tensor.name)} ends at byte {end}, the file at {self._size}: it is cut or wrong. "
                    "hint: was it downloaded completely?"
                )
        ordered = sorted((offset, tensor.n_bytes) for tensor, offset in entries)
        if any(a + size > b for (a, size), (b, _) in itertools.pairwise(ordered)):
            raise HeaderError("two tensors overlap in the file")
        return tuple(tensor for tensor, _ in entries)

    def _tensor(self, alignment: int) -> tuple[Tensor, int]:
        name = self._name("a tensor's name", limit=MAX_NAME_BYTES)
        n_dims = self._unsigned(_U32)
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise HeaderError(f"tensor {_shown(name)} has {n_dims} dimensions, 1 to {MAX_DIMENSIONS} are possible")
        shape = tuple(self._unsigned(_U64) for _ in range(n_dims))
        kind = self._unsigned(_U32)
        offset = self._unsigned(_U64)
        if kind not in TENSOR_TYPES:
            raise HeaderError(f"tensor {_shown(name)} has the unknown type {kind}")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        n_elements = math.prod(shape)
        if min(shape) < 1 or n_elements > _MAX_INT64:
            raise HeaderError(f"tensor {_shown(name)} has the impossible shape {shape}")
        if shape[0] % block:
            raise HeaderError(f"tensor {_shown(name)} has rows of {shape[0]}, {type_name} needs a multiple of {block}")
        if offset % alignment:
            raise HeaderError(f"tensor {_shown(name)} is not aligned to {alignment} bytes")
        return Tensor(name, shape, type_name, n_elements // block * block_bytes), offset

    def _array(self, key: str) -> tuple[int, list[Value] | None]:
        kind = self._unsigned(_U32)
        length = self._unsigned(_U64)
        if kind == _ARRAY:
            raise HeaderError(f"the array {_shown(key)} holds arrays, which no known model does")
        if (wrong := vocabulary.wrong_list(key, kind)) is not None:
            raise HeaderError(wrong)
        least_bytes = 8 if kind == _STRING else self._scalar(kind, key).size
        if length > MAX_ELEMENTS or length * least_bytes > self._size - self._at:
            raise HeaderError(f"the array {_shown(key)} announces {length} values, more than the file can hold")
        if length <= KEPT_ELEMENTS and kind != _STRING and key != vocabulary.TYPES:
            return length, [self._value(kind, key) for _ in range(length)]
        if key == vocabulary.TOKENS and kind == _STRING:
            self._tokens = self._strings(length, key)
            self._longest_token_bytes = max(map(len, self._tokens), default=0)
        elif kind == _STRING:
            self._skip_strings(length, key)
        elif key == vocabulary.TYPES and kind == _INT32:
            self._token_types = self._take(length * least_bytes)
        else:
            self._at += length * least_bytes
        return length, None

    def _strings(self, length: int, key: str) -> list[bytes]:
        """The strings themselves, for a look that is over when the header is read."""
        unpack = _U64.unpack_from
        found: list[bytes] = []
        while len(found) < length:
            start = self._at
            window = self._ahead(8)
            at = start - self._window_start
            n_bytes = unpack(window, at)[0]
            if n_bytes > MAX_STRING_BYTES:
                raise HeaderError(f"the array {_shown(key)} holds a string of {n_bytes} bytes, more than there can be")
            window = self._ahead(8 + n_bytes)
            at = start - self._window_start
            end = len(window)
            while len(found) < length and at + 8 <= end and (after := at + 8 + unpack(window, at)[0]) <= end:
                found.append(window[at + 8 : after])
                at = after
            self._at = self._window_start + at
        return found

    def _skip_strings(self, length: int, key: str) -> int:
        """Walk over strings; the bytes of the longest."""
        unpack = _U64.unpack_from
        longest = at = 0
        left = length
        while left:
            start = self._at
            window = self._ahead(8)
            at = start - self._window_start
            last = len(window) - 8
            while left and at <= last:
                n_bytes = unpack(window, at)[0]
                longest = max(longest, n_bytes)
                at += 8 + n_bytes
                left -= 1
            self._at = self._window_start + at
            if self._at > self._size or longest > MAX_STRING_BYTES:
                raise HeaderError(f"the array {_shown(key)} holds a string of {longest} bytes, more than there can be")
        return longest

    def _value(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self._string(_shown(key))
        value: int | float | bool = self._unpack(self._scalar(kind, key))
        return value

    def _scalar(self, kind: int, key: str) -> struct.Struct:
        if kind not in _SCALARS:
            raise HeaderError(f"the metadata key {_shown(key)} has the unknown type {kind}")
        return _SCALARS[kind]

    def _name(self, what: str, *, limit: int) -> str:
        name = self._string(what, limit=limit)
        if not name or "\ufffd" in name:
            raise HeaderError(f"{what} is empty or no text: {_shown(name)}")
        return name

    def _string(self, what: str, *, limit: int = MAX_STRING_BYTES) -> str:
        n_bytes = self._unsigned(_U64)
        if n_bytes > limit or n_bytes > self._size - self._at:
            raise HeaderError(f"{what} announces {n_bytes} bytes, more than there can be")
        self._kept_bytes += n_bytes
        if self._kept_bytes > MAX_KEPT_BYTES:
            raise HeaderError(f"the metadata holds more than {MAX_KEPT_BYTES} bytes of text")
        return self._take(n_bytes).decode("utf-8", "replace")

    def _count(self, limit: int, what: str, *, least_bytes: int) -> int:
        n = self._unsigned(_U64)
        if n > limit or n * least_bytes > self._size:
            raise HeaderError(f"the file announces {n} {what}, more than it can hold")
        return n

    def _unsigned(self, kind: struct.Struct) -> int:
        value: int = self._unpack(kind)
        return value

    def _unpack(self, kind: struct.Struct) -> Any:
        window = self._ahead(kind.size)
        value = kind.unpack_from(window, self._at - self._window_start)[0]
        self._at += kind.size
        return value

    def _take(self, n_bytes: int) -> bytes:
        start = self._at
        window = self._ahead(n_bytes)
        self._at += n_bytes
        return window[start - self._window_start : self._at - self._window_start]

    def _ahead(self, n_bytes: int) -> bytes:
        """The window, moved so that the next `n_bytes` are in it."""
        if self._at + n_bytes > self._size:
            raise HeaderError(f"the file ends at byte {self._size}, inside its header: it is cut or wrong. {_AGAIN}")
        if self._at + n_bytes > self._window_start + len(self._window) or self._at < self._window_start:
            self._window = os.pread(self._fd, max(n_bytes, _WINDOW_BYTES), self._at)
            self._window_start = self._at
            if len(self._window) < n_bytes:
                raise HeaderError("the file changed while it was read")
        return self._window


def _shown(text: str) -> str:
    """A name from a stranger's file, short and printable."""
    return repr(text[:80])
