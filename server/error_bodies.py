"""Which error body a client reads: Ollama's below `/api/`, Anthropic's on its paths and with its header, else OpenAI's.

Anthropic's holds OpenAI's four keys as well; in Ollama's, whose `error` is a sentence, they stand beside it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.errors import ApiError

Dialect = Literal["openai", "anthropic", "ollama"]
OLLAMA_PATHS = "/api/"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


_LENGTHS = re.compile(r"context length is (\d+) tokens\b.*? resulted in (?:at least )?(\d+) ")


def _too_long(sentence: str) -> str:
    """Anthropic's words in front: Claude Code reads both numbers in them and shortens its history."""
    found = _LENGTHS.search(sentence)
    lengths = "" if found is None else f" {found[2]} tokens > {found[1]} maximum."
    return f"prompt is too long:{lengths} {sentence}"


def speaks_anthropic(path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the client of this request reads Anthropic's shapes."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    return any(name == b"anthropic-version" for name, _ in headers)


def dialect_of(path: str, headers: Iterable[tuple[bytes, bytes]]) -> Dialect:
    """Whose shapes the client of this request reads."""
    if path.startswith(OLLAMA_PATHS):
        return "ollama"
    return "anthropic" if speaks_anthropic(path, headers) else "openai"


def error_body(problem: ApiError, *, dialect: Dialect, request_id: str) -> bytes:
    """The body of an error answer."""
    if dialect == "anthropic":
        return msgspec.json.encode(anthropic_error(problem, request_id))
    if dialect == "ollama":
        told = problem.as_dict()
        return msgspec.json.encode({"error": told.pop("message"), **told})
    return problem.body()


def anthropic_error(problem: ApiError, request_id: str) -> dict[str, Any]:
    """`{"type": "error", "error": {...}, "request_id": ...}`."""
    kind = _TYPES.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {**problem.as_dict(), "type": kind}
    if problem.details is not None:
        error["details"] = problem.details
    if problem.code == "context_length_exceeded":
        error["message"] = _too_long(error["message"])
    return {"type": "error", "error": error, "request_id": request_id}
