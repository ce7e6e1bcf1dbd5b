"""From the bytes of a request to one JSON object, without stalling the event loop.

Owns how strictly JSON is read and how much structure a body may hold; knows no field.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, TypeVar

import jiter

from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

T = TypeVar("T")

LARGE_BODY_BYTES = 256 * 1024
"""From here on a body is read in a thread. The parser keeps the interpreter to itself while it runs, so a thread alone
does not bound how long the event loop waits: `MAX_STRUCTURE` does."""
MAX_STRUCTURE = 500_000
_CONTAINER_COST = 10
_KEY_COST = 3
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[:,]', re.DOTALL)
_WHERE = re.compile(r" at line \d+ column \d+$")


def parse_object(body: bytes) -> dict[str, Any]:
    """The one JSON object in `body`. Raises ApiError 400 for anything else, and for keys given twice."""
    if len(body) > LARGE_BODY_BYTES and structure_exceeds(body, MAX_STRUCTURE):
        raise ApiError(400, "The body holds too many JSON values.", code="invalid_json")
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as problem:
        raise ApiError(
            400, f"We could not parse the JSON body of your request: {_reason(problem)}.", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body of your request must be one JSON object.", code="invalid_json")
    return value


def _reason(problem: ValueError) -> str:
    """The parser's reason; a duplicate key's name is the client's and is left out."""
    text = str(problem)
    where = _WHERE.search(text)
    if text.startswith("Detected duplicate key"):
        return "duplicate key" + (where.group() if where else "")
    return text if text.isascii() else "invalid JSON"


def structure_exceeds(body: bytes, limit: int) -> bool:
    """Whether objects, arrays, keys and items together weigh more than `limit`; text inside strings weighs nothing."""
    containers = body.count(b"{") + body.count(b"[")
    if containers * _CONTAINER_COST + body.count(b":") * _KEY_COST + body.count(b",") <= limit:
        return False
    cost = 0
    for match in _TOKEN.finditer(body):
        first = body[match.start()]
        cost += _CONTAINER_COST if first in b"[{" else _KEY_COST if first in b":" else 1
        if cost > limit:
            return True
    return False


async def read_as(request: Request, build: Callable[[dict[str, Any]], T]) -> T:
    """Read the whole body, parse it and let `build` check it; in a thread where it is large."""
    body = await request.body()
    if len(body) <= LARGE_BODY_BYTES:
        return build(parse_object(body))
    return await asyncio.to_thread(lambda: build(parse_object(body)))
