"""What a batch file holds: a request per line, checked before any of them runs, and never more than one in memory."""

from __future__ import annotations

import codecs
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from server.errors import ApiError, clip
from server.schemas.body import parse_object

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 16 * 2**20
MAX_PROBLEMS: Final = 100
"""Told of one file; the rest is alike."""
_PART_LINES: Final = 500
_PART_BYTES: Final = 4 * 2**20
_SORT_CHARS: Final = 1024
_PROMPT_FIELDS: Final = ("tools", "instructions", "system", "messages", "prompt", "input", "query", "documents")
"""In the order in which templates write them."""


@dataclass(frozen=True)
class Line:
    """One request of a batch."""

    n: int
    """Its place in the file, from 1."""
    custom_id: str
    model: str
    """As the body names it; empty where it names none."""
    beginning: str
    """What its prompt begins with: requests that begin alike run one behind the other."""
    body: bytes


@dataclass(frozen=True)
class Problem:
    """What is wrong with a line, or with the file as a whole (None)."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def cut_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; what a line has beyond `MAX_LINE_BYTES` and one byte is passed over.

    A mark of byte order, which editors on Windows write first, is no part of any.
    """
    most = MAX_LINE_BYTES + 1
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)
    while raw := file.readline(most):
        yield raw
        while len(raw) == most and not raw.endswith(b"\n"):
            raw = file.readline(most)


def read_lines(file: Iterable[bytes], endpoint: str) -> Iterator[Line | Problem]:
    """Check line by line; a file that has a problem has no requests behind it. Empty lines are skipped."""
    seen, n_problems = dict[str, int](), 0
    for n, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        try:
            line = _read(n, raw, endpoint)
            if (before := seen.setdefault(line.custom_id, n)) != n:
                told = f"The custom_id '{clip(line.custom_id)}' stands in line {before} already."
                raise _LineError("duplicate_custom_id", told, "custom_id")
        except _LineError as problem:
            yield Problem(problem.code, str(problem), n, problem.param)
            n_problems += 1
            if n_problems >= MAX_PROBLEMS:
                return
            continue
        if len(seen) > MAX_LINES:
            told = f"The file has more than {MAX_LINES} requests. hint: make several batches of it"
            yield Problem("too_many_requests", told)
            return
        if not n_problems:
            yield line
    if not seen and not n_problems:
        yield Problem("empty_file", "The file holds no request: one JSON object per line is expected.")


def _read(n: int, raw: bytes, endpoint: str) -> Line:
    """Raises _LineError."""
    if len(raw) > MAX_LINE_BYTES:
        raise _LineError("request_too_large", f"The line has more than {MAX_LINE_BYTES} bytes.")
    try:
        request = parse_object(raw, called="line")
    except ApiError as problem:
        raise _LineError("invalid_json_line", problem.message) from None
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or len(custom_id) > _SORT_CHARS:
        raise _LineError("missing_required_parameter", "The line needs a text as its custom_id.", "custom_id")
    if request.get("method") != "POST":
        raise _LineError("invalid_method", "The method has to be POST.", "method")
    if request.get("url") != endpoint:
        told = f"The url is {clip(request.get('url'))}, and the batch is for {endpoint}."
        raise _LineError("mismatched_endpoint", told, "url")
    body = request.get("body")
    if not isinstance(body, dict):
        raise _LineError("missing_required_parameter", "The line needs a body: an object.", "body")
    if body.get("stream"):
        raise _LineError("invalid_value", "A request of a batch cannot stream.", "body.stream")
    data = _encoded(body)
    model = body.get("model")
    return Line(n, custom_id, model if isinstance(model, str) else "", _beginning(body), data)


def _encoded(body: dict[str, Any]) -> bytes:
    """Raises _LineError for numbers beyond those that JSON has: 1e999 is read as an infinite one."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError:
        told = "The body holds a number that is too large."
        raise _LineError("invalid_json_line", told, "body") from None


def _beginning(body: dict[str, Any]) -> str:
    parts = [json.dumps(body[name], ensure_ascii=True)[:_SORT_CHARS] for name in _PROMPT_FIELDS if body.get(name)]
    return "".join(parts)[:_SORT_CHARS]


def in_parts(read: Iterator[Line | Problem]) -> Iterator[list[Line | Problem]]:
    """What is written at once: bounded in number and, but for the last line, in bytes."""
    part: list[Line | Problem] = []
    n_bytes = 0
    for one in read:
        part.append(one)
        n_bytes += len(one.body) if isinstance(one, Line) else 0
        if len(part) >= _PART_LINES or n_bytes >= _PART_BYTES:
            yield part
            part, n_bytes = [], 0
    if part:
        yield part
