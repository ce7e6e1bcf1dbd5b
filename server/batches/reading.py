"""What a batch file holds: a request per line, checked before any of them runs. Pure but for the file it reads."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from server.errors import clip, encodable

if TYPE_CHECKING:
    from collections.abc import Iterable

ENDPOINTS: Final = (
    *("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/embeddings"),
    *("/v1/messages", "/v1/rerank"),
)
"""What a batch may ask: OpenAI's own, and those of ours that answer a body of JSON as quietly."""
MAX_LINES: Final = 50_000
MAX_LINE_BYTES: Final = 16 * 2**20
MAX_PROBLEMS: Final = 100
"""Told of one file; the rest is alike."""
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


@dataclass
class BatchInput:
    """A file that was read: its requests, or what is wrong with it."""

    lines: list[Line] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class _LineError(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def read_input(file: Iterable[bytes], endpoint: str) -> BatchInput:
    """Check every line; a file with a problem has no requests. Empty lines are skipped."""
    found, seen = BatchInput(), dict[str, int]()
    for n, raw in enumerate(file, 1):
        if not raw.strip():
            continue
        try:
            line = _read(n, raw, endpoint)
            if (before := seen.setdefault(line.custom_id, n)) != n:
                told = f"The custom_id '{clip(line.custom_id)}' stands in line {before} already."
                raise _LineError("duplicate_custom_id", told, "custom_id")
        except _LineError as problem:
            found.problems.append(Problem(problem.code, str(problem), n, problem.param))
            if len(found.problems) >= MAX_PROBLEMS:
                break
            continue
        found.lines.append(line)
        if len(found.lines) > MAX_LINES:
            told = f"The file has more than {MAX_LINES} requests. hint: make several batches of it"
            found.problems = [Problem("too_many_requests", told)]
            break
    if not found.lines and not found.problems:
        found.problems.append(Problem("empty_file", "The file holds no request: one JSON object per line is expected."))
    return found


def _read(n: int, raw: bytes, endpoint: str) -> Line:
    """Raises _LineError."""
    if len(raw) > MAX_LINE_BYTES:
        raise _LineError("request_too_large", f"The line has {len(raw)} bytes, and may have {MAX_LINE_BYTES}.")
    try:
        request = json.loads(raw, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise _LineError("invalid_json_line", "The line is no JSON.") from None
    if not isinstance(request, dict):
        raise _LineError("invalid_json_line", "The line is no JSON object.")
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id or len(custom_id) > _SORT_CHARS:
        raise _LineError("missing_required_parameter", "The line needs a text as its custom_id.", "custom_id")
    if custom_id != encodable(custom_id):
        raise _LineError("invalid_value", "The custom_id holds half of a surrogate pair.", "custom_id")
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises _LineError for a key that stands twice, as `server.schemas.body` refuses it over HTTP."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _LineError("invalid_json_line", "An object of the line has a key twice.")
    return found


def _encoded(body: dict[str, Any]) -> bytes:
    """Raises _LineError for what would be another body than the file's."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        told = "The body holds half of a surrogate pair."
    except RecursionError:
        told = "The body is nested too deep."
    except ValueError:
        told = "The body holds a number that JSON has not: NaN or an infinite one."
    raise _LineError("invalid_json_line", told, "body")


def _beginning(body: dict[str, Any]) -> str:
    parts = [json.dumps(body[name], ensure_ascii=True)[:_SORT_CHARS] for name in _PROMPT_FIELDS if body.get(name)]
    return "".join(parts)[:_SORT_CHARS]
