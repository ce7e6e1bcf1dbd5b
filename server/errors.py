"""Errors as OpenAI's clients expect them: one exception, one body, one table from job failures to HTTP statuses.

Owns no validation: `server.schemas.problems` turns what is wrong with a body into these.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.messages import ErrorCode, Failed

MAX_ECHO_CHARS = 64
_ADDRESS = re.compile(r"(?:\s+at)?\s*\(?\b0x[0-9a-fA-F]{6,16}\b\)?")
_MAX_LISTED_MODELS = 8
MAX_RETRY_S = 60
_DEFAULT_RETRY_S = 1.0


class ApiError(Exception):
    """What a client is told when its request fails."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",  # noqa: A002  (OpenAI's own name)
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.details = details
        """What Anthropic's SDK reads beside the sentence: an `error_code` and what belongs to it."""

    def body(self) -> bytes:
        """`{"error": {...}}` with all four keys; encodable whatever the message holds."""
        return msgspec.json.encode({"error": self.as_dict()})

    def as_dict(self) -> dict[str, str | None]:
        """The four keys of an OpenAI error."""
        return {
            "message": encodable(self.message),
            "type": self.type,
            "param": None if self.param is None else encodable(self.param),
            "code": self.code,
        }


def without_addresses(text: str) -> str:
    """The text without places in memory, as Python and C++ write them: they help an attacker alone."""
    return _ADDRESS.sub("", text)


def encodable(text: str) -> str:
    """The text with everything replaced that UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def clip(value: object) -> str:
    """A client's value for an error message: at most 64 characters, printable, never failing."""
    text = value if isinstance(value, str) else _plain(value)
    shown = text if len(text) <= MAX_ECHO_CHARS else text[: MAX_ECHO_CHARS - 3] + "..."
    return encodable("".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in shown))


def _plain(value: object) -> str:
    """A scalar as JSON writes it; only the kind of anything else."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if value.bit_length() < 256 else "a huge integer"
    return repr(value) if isinstance(value, float) else f"a {type(value).__name__}"


@dataclass(frozen=True)
class _Rule:
    """How one kind of failure looks over HTTP."""

    status: int
    type: Literal["invalid_request_error", "server_error", "requests"] = "server_error"
    code: str | None = None
    retry: bool | None = None
    """True: worth repeating (`Retry-After`); False: never (`x-should-retry: false`); None: the client's own rules."""
    headers: dict[str, str] = field(default_factory=dict)


_RULES: dict[ErrorCode, _Rule] = {
    "invalid_value": _Rule(400, "invalid_request_error", "invalid_value"),
    "unsupported_parameter": _Rule(400, "invalid_request_error", "unsupported_parameter"),
    "context_length_exceeded": _Rule(400, "invalid_request_error", "context_length_exceeded"),
    "template_error": _Rule(400, "invalid_request_error", "template_error"),
    "model_not_found": _Rule(404, "invalid_request_error", "model_not_found"),
    "cannot_fit": _Rule(400, "invalid_request_error", "cannot_fit", retry=False),
    "memory_busy": _Rule(503, code="memory_busy", retry=True),
    "queue_full": _Rule(429, "requests", "rate_limit_exceeded", retry=True),
    "queue_timeout": _Rule(503, code="queue_timeout", retry=True),
    "request_timeout": _Rule(500, code="request_timeout", retry=False),
    "load_failed": _Rule(503, code="load_failed", retry=False),
    "quarantined": _Rule(503, code="quarantined", retry=True),
    "worker_crashed": _Rule(500, code="worker_crashed"),
    "worker_hung": _Rule(500, code="worker_hung"),
    "out_of_memory": _Rule(503, code="out_of_memory", retry=True),
    "unsupported_media": _Rule(400, "invalid_request_error", "unsupported_media"),
    "draining": _Rule(503, code="draining", retry=True, headers={"connection": "close"}),
    "cancelled": _Rule(499, code="cancelled", retry=False),
    "internal_error": _Rule(500, code="internal_error"),
}


def from_failed(failed: Failed, *, params: Mapping[str, str] | None = None) -> ApiError:
    """The HTTP form of a failed job; `params` renames the job's fields to the route's own."""
    rule = _RULES[failed.code]
    param = failed.param
    if param is not None and params is not None:
        param = _renamed(param, params)
    return ApiError(
        rule.status,
        without_addresses(failed.message),
        type=rule.type,
        param=param,
        code=rule.code,
        headers={**rule.headers, **_retry_headers(rule, failed.retry_after_s)},
    )


def _renamed(param: str, params: Mapping[str, str]) -> str:
    """The route's name of a field, or of the one that the path begins with."""
    beginnings = [name for name in params if param == name or param.startswith((f"{name}.", f"{name}["))]
    longest = max(beginnings, key=len, default=None)
    return param if longest is None else params[longest] + param[len(longest) :]


def _retry_headers(rule: _Rule, retry_after_s: float | None) -> dict[str, str]:
    if rule.retry is None:
        return {}
    if not rule.retry:
        return {"x-should-retry": "false"}
    seconds = _DEFAULT_RETRY_S if retry_after_s is None else retry_after_s
    return {"retry-after": str(min(MAX_RETRY_S, max(1, math.ceil(seconds))))}


def draining() -> ApiError:
    """The server is going down and takes nothing new."""
    rule = _RULES["draining"]
    return ApiError(
        rule.status,
        "The server is shutting down and takes no new requests.",
        type=rule.type,
        code=rule.code,
        headers={**rule.headers, **_retry_headers(rule, None)},
    )


def model_not_found(name: str, known: Sequence[str]) -> ApiError:
    """No model has this name; those that do are told, the first few of them."""
    listed = ", ".join(f"`{clip(other)}`" for other in known[:_MAX_LISTED_MODELS])
    more = ", ..." if len(known) > _MAX_LISTED_MODELS else ""
    return ApiError(
        404,
        f"The model `{clip(name)}` does not exist or you do not have access to it. This server has {listed}{more}.",
        code="model_not_found",
    )


def unsupported_parameter(param: str, why: str = "is not supported by this server.") -> ApiError:
    """A field that would change the output and that this server cannot honour."""
    return ApiError(400, f"Unsupported parameter: '{param}' {why}", param=param, code="unsupported_parameter")


def missing_parameter(param: str) -> ApiError:
    """A field that has to be there."""
    return ApiError(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def internal_error(request_id: str) -> ApiError:
    """Our own fault, with the id under which the log tells more."""
    return ApiError(
        500,
        f"The server had an error while processing your request. The log names it under request id {request_id}.",
        type="server_error",
        code="internal_error",
    )


def place_of(problem: BaseException) -> str:
    """Where an exception was raised, as `module:line`: no path, no values."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown"
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
