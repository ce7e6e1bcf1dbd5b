"""Which error body the clients of a path read: OpenAI's everywhere but on `/v1/messages`, where it is Anthropic's.

Anthropic's holds OpenAI's four keys as well, so whoever reads `error.code` finds it on every path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from server.errors import ApiError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(problem: ApiError, *, path: str, request_id: str) -> bytes:
    """The body of an error answer."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return msgspec.json.encode(anthropic_error(problem, request_id))
    return problem.body()


def anthropic_error(problem: ApiError, request_id: str) -> dict[str, Any]:
    """`{"type": "error", "error": {...}, "request_id": ...}`."""
    kind = _TYPES.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")
    error = {**problem.as_dict(), "type": kind}
    if problem.code == "context_length_exceeded":
        # Claude Code shortens its history when it reads these words.
        error["message"] = f"prompt is too long: {error['message']}"
    return {"type": "error", "error": error, "request_id": request_id}
