"""From the bytes of a request to one JSON object, without stalling the event loop.

Owns how strictly JSON is read and how much structure a body may hold; knows no field.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, TypeVar

import jiter

from server.errors import MAX_ECHO_CHARS, ApiError, clip

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

T = TypeVar("T")

THREAD_BYTES = 64 * 1024
"""From here on a body is read and checked in a thread: a schema of so many bytes takes 50 ms."""
LARGE_BODY_BYTES = 256 * 1024
MAX_STRUCTURE = 500_000
"""Of a large body. The parser keeps the interpreter to itself while it runs, so a thread alone does not bound how long
the event loop waits."""
_CONTAINER_COST = 10
_KEY_COST = 10
"""Keys are dear: each is looked up among its object's others, 1.5 us in a large one."""
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{\]}:,]', re.DOTALL)
_QUOTE, _COLON = b'":'
_WHERE = re.compile(r" at line \d+ column \d+$")


def parse_object(body: bytes, *, called: str = "body of your request") -> dict[str, Any]:
    """The one JSON object in `body`. Raises ApiError 400 for anything else, and for keys given twice."""
    if len(body) > LARGE_BODY_BYTES and (key := overfull_field(body, MAX_STRUCTURE)) is not None:
        raise _too_many(key)
    try:
        value = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as problem:
        raise ApiError(400, f"We could not parse the JSON {called}: {_reason(problem)}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, f"The {called} must be one JSON object.", code="invalid_json")
    return value


def _too_many(key: bytes) -> ApiError:
    """The field that holds too much, where its name can be told."""
    sentence = "The body holds too many JSON values."
    try:
        name = clip(jiter.from_json(key))
    except ValueError:
        return ApiError(400, sentence, code="invalid_json")
    return ApiError(400, f"Invalid '{name}': too many JSON values.", param=name, code="array_above_max_length")


def _reason(problem: ValueError) -> str:
    """The parser's reason; a duplicate key's name is the client's and is left out."""
    text = str(problem)
    where = _WHERE.search(text)
    if text.startswith("Detected duplicate key"):
        return "duplicate key" + (where.group() if where else "")
    return text if text.isascii() else "invalid JSON"


def overfull_field(body: bytes, limit: int) -> bytes | None:
    """The top-level key at which objects, arrays, keys and items together outweigh `limit`; None where they don't.

    Text inside strings weighs nothing. The key is as it is written, with its quotes, and empty where there is none.
    """
    containers = body.count(b"{") + body.count(b"[")
    if containers * _CONTAINER_COST + body.count(b":") * _KEY_COST + body.count(b",") <= limit:
        return None
    cost = depth = 0
    key = string = b""
    for match in _TOKEN.finditer(body):
        first = body[match.start()]
        if first == _QUOTE:
            if depth == 1:
                string = match.group()[:MAX_ECHO_CHARS]
        elif first in b"[{":
            depth += 1
            cost += _CONTAINER_COST
        elif first in b"]}":
            depth -= 1
        else:
            if first == _COLON and depth == 1:
                key = string
            cost += _KEY_COST if first == _COLON else 1
        if cost > limit:
            return key
    return None


async def read_as(request: Request, build: Callable[[dict[str, Any]], T]) -> T:
    """Read the whole body, parse it and let `build` check it; in a thread where it is large."""
    body = await request.body()
    fetch = getattr(request.app.state, "fetch_media", None)
    if fetch is None or b"://" not in body:
        return await off_loop(len(body), lambda: build(parse_object(body)))
    data = await off_loop(len(body), lambda: parse_object(body))
    await fetch(data)
    return await off_loop(len(body), lambda: build(data))


async def off_loop(n_bytes: int, work: Callable[[], T]) -> T:
    """The result of work on so many bytes of JSON; done in a thread where they are many."""
    return work() if n_bytes <= THREAD_BYTES else await asyncio.to_thread(work)
