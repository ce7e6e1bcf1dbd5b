"""A training file as JSON objects or rows of a table, one at a time: bounded memory, each fault with its line's number.

Knows nothing of what an example has to hold; that is `examples`.
"""

from __future__ import annotations

import csv
import io
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

import jiter

from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_LINE_BYTES: Final = 8 * 2**20
"""Millions of tokens: far more than a context."""
_PART_BYTES: Final = 2**16
_MARK: Final = b"\xef\xbb\xbf"
_WIDE_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS: Final = (",", ";", "\t")
_MOST_NAMES: Final = 8
_NAME_CHARS: Final = 40


class ExampleError(Exception):
    """What is wrong with one line, as a sentence without its number."""


class Found(NamedTuple):
    """One object of a file, or what is wrong there."""

    line: int
    """Where it begins, from 1."""
    value: dict[str, Any] | ExampleError


def objects(path: Path) -> Iterator[Found]:
    """The JSON objects of a file, one a line; empty lines are passed over. Raises model_files.FileError."""
    with _reader(path) as file:
        for n, raw in _lines(file):
            if isinstance(raw, ExampleError):
                yield Found(n, raw)
            elif raw.strip():
                yield Found(n, _object(raw))


def is_table(path: Path) -> bool:
    """Whether it is none of JSON lines: its first sign opens no object. Raises model_files.FileError."""
    with _reader(path) as file:
        for _, raw in _lines(file):
            if isinstance(raw, ExampleError):
                return False
            if raw.strip():
                return not raw.lstrip().startswith((b"{", b"["))
    return False


def table(path: Path) -> Iterator[Found]:
    """The rows of a table with a header (CSV, separated by comma, semicolon or tab), as objects of texts.

    The first is the header itself, as an object of its names. Raises model_files.FileError.
    """
    with _reader(path) as file:
        begun = _Begun(0)
        lines = _texts(file, begun)
        header = next(lines, "")
        delimiter = max(_DELIMITERS, key=header.count)
        rows = csv.reader(_again(header, lines), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        line = 1
        while True:
            try:
                row = next(rows, None)
            except ExampleError as fault:
                yield Found(begun.line, fault)
                return
            except csv.Error as fault:
                yield Found(line, ExampleError(_of_csv(fault)))
                return
            if row is None:
                return
            if names is None:
                names = [name.strip() for name in row]
                yield Found(line, _header(names))
            elif row:
                yield Found(line, _row(names, row))
            line = rows.line_num + 1


class _Begun:
    """The line that is being read."""

    def __init__(self, line: int) -> None:
        self.line = line


@contextmanager
def _reader(path: Path) -> Iterator[BinaryIO]:
    with model_files.opened(path) as file, io.BufferedReader(io.FileIO(file.fd, closefd=False)) as reader:
        yield reader


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | ExampleError]]:
    n = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        n += 1
        if n == 1 and raw.startswith(_WIDE_MARKS):
            yield n, ExampleError("it is UTF-16. hint: save the file as UTF-8")
            return
        if len(raw) <= MAX_LINE_BYTES:
            yield n, raw.removeprefix(_MARK) if n == 1 else raw
            continue
        n_bytes = len(raw)
        while not raw.endswith(b"\n") and (raw := file.readline(_PART_BYTES)):
            n_bytes += len(raw)
        told = f"it has {n_bytes} bytes, and a line may have {MAX_LINE_BYTES}. hint: make several examples of it"
        yield n, ExampleError(told)


def _texts(file: BinaryIO, begun: _Begun) -> Iterator[str]:
    """Raises ExampleError."""
    for n, raw in _lines(file):
        begun.line = n
        if isinstance(raw, ExampleError):
            raise raw
        yield _text(raw)


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        told = f"it is no UTF-8 text: byte {error.start + 1} is none. hint: save the file as UTF-8"
        raise ExampleError(told) from None


def _object(raw: bytes) -> dict[str, Any] | ExampleError:
    try:
        if not raw.isascii():
            _text(raw)
        value = jiter.from_json(raw, allow_inf_nan=False, catch_duplicate_keys=True)
    except ExampleError as fault:
        return fault
    except (ValueError, RecursionError) as error:
        why = str(error).replace("at line 1 column", "at column")
        return ExampleError(f"it is no JSON that can be read: {why[:120]}")
    return value if isinstance(value, dict) else ExampleError("it is no JSON object. hint: one {...} a line")


def _header(names: list[str]) -> dict[str, Any] | ExampleError:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        return ExampleError(f"the header names the column '{twice[:_NAME_CHARS]}' twice")
    return dict.fromkeys(names, "")


def _row(names: list[str], row: list[str]) -> dict[str, Any] | ExampleError:
    if len(row) != len(names):
        return ExampleError(f"it has {len(row)} columns, and the header names {len(names)}. hint: quote the text")
    return dict(zip(names, row, strict=True))


def _of_csv(fault: csv.Error) -> str:
    if "field larger" in str(fault):
        return (
            f"a field has more than {csv.field_size_limit()} characters. hint: a quote before it is not closed; longer "
            "texts go into JSON lines"
        )
    if "unexpected end" in str(fault):
        return "a quote that begins here is not closed"
    return f"it is no row of a table: {fault}"


def shown(names: object) -> str:
    """Names from a file, as a sentence can hold them."""
    found = [model_files.shown(str(name))[:_NAME_CHARS] for name in list(names)[:_MOST_NAMES]]  # type: ignore[call-overload]
    return ", ".join(found) or "none"
