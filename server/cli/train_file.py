"""What `onecard train` uploads: JSON lines as they are; tables and plain texts become JSON lines. Checked before."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from backends.training.examples import Checked, Completion, check, read
from server.cli.console import CliError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator

_TEXTS: Final = (".txt", ".text", ".md")
"""Ends of names of plain texts: each paragraph is an example."""


@contextlib.contextmanager
def training_lines(path: Path, column: str) -> Iterator[tuple[BinaryIO, Checked]]:
    """JSON lines of a file, and what they are. Raises CliError with the lines that are wrong."""
    try:
        if path.suffix.lower() in _TEXTS:
            with _as_lines(_paragraphs(path)) as made, made.open("rb") as file:
                yield file, _checked(made, path, "text")
            return
        checked = _checked(path, path, column)
        if checked.form == "text" and not (column == "text" and _is_json(path)):
            with _as_lines(_texts_of(path, column)) as made, made.open("rb") as file:
                yield file, checked
            return
        with path.open("rb") as file:
            yield file, checked
    except OSError as problem:
        raise CliError(f"{path}: {(problem.strerror or 'it cannot be read').lower()}", ExitCode.USAGE) from None


def _checked(path: Path, named: Path, column: str) -> Checked:
    checked = check(path, column=column)
    if checked.n_faults:
        raise CliError(f"{named}: {checked.told}", ExitCode.USAGE)
    return checked


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


@contextlib.contextmanager
def _as_lines(texts: Iterator[str]) -> Iterator[Path]:
    """A file of JSON lines, gone at the end."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as made:
        for text in texts:
            made.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
        made.flush()
        yield Path(made.name)


def _texts_of(path: Path, column: str) -> Iterator[str]:
    for _, example in read(path, "text", column=column):
        if isinstance(example, Completion):
            yield example.completion


def _paragraphs(path: Path) -> Iterator[str]:
    """What stands between empty lines. Raises CliError where it is no UTF-8."""
    lines: list[str] = []
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).strip()
                    lines = []
    except UnicodeDecodeError:
        raise CliError(f"{path}: it is no UTF-8 text. hint: save it as UTF-8", ExitCode.USAGE) from None
    if lines:
        yield "".join(lines).strip()
