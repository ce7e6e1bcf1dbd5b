"""One request on its way to a node: its answer is passed on, or given up for another node before its first token."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx2
import jiter

from server.accounts.account import LIMIT_REACHED
from server.cluster.asks import answer_id
from server.cluster.stream import SIGN, SIGN_EVERY_S, Held, broken
from server.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from server.cluster.bodies import Body
    from server.error_bodies import Dialect

_OF_ONE_HOP: Final = frozenset(
    (b"connection", b"content-length", b"date", b"host", b"keep-alive", b"server", b"te", b"trailer",
     b"transfer-encoding", b"upgrade", b"x-request-id", b"request-id", b"accept-encoding")
)  # fmt: skip
_OF_EVENTS: Final = ("text/event-stream", "application/x-ndjson")
_STREAMS: Final = (*_OF_EVENTS, "audio/")
_FIRST_BYTES: Final = 4096
_MOST_DIGITS: Final = 15
_LARGE_BYTES: Final = 2**20
"""From here on what is read, such as a file, passes as it comes."""
_JSON: Final = "application/json"
_IMAGE: Final = re.compile(rb'"https?://[^"/\\]+/v1/images/files/([0-9A-Za-z_.]{1,100})"')


class ElsewhereError(Exception):
    """The node gave no token, and another one may. `refusal` is what it answered, if anything."""

    def __init__(self, refusal: httpx2.Response | None = None, *, unreachable: bool = False) -> None:
        super().__init__()
        self.refusal = refusal
        self.unreachable = unreachable
        """It does not even know of the request."""


class CutOffError(Exception):
    """The client has a part of an answer whose rest is lost: its connection has to end as a broken one."""


@dataclass
class Incoming:
    """A request as it came, and what its client has got."""

    method: str
    target: str
    """Path and query."""
    path: str
    headers: list[tuple[bytes, bytes]]
    body: Body
    id: str
    dialect: Dialect
    scheme: str = "http"
    started: bool = False
    """The client has its status and headers."""
    begun: bool = False
    """The client has a token, or all of the answer: nothing can begin anew."""
    answer_id: str | None = None
    """Of the answer, where later requests may go on from it."""
    took_s: float | None = None
    """What the node computed for it, without its queue and load; None where it failed."""
    images: list[str] = field(default_factory=list)
    """Of the answer, those that are fetched by an address."""
    _first: bytes = field(default=b"", repr=False)

    def begin_anew(self) -> None:
        """What another node has answered before is no part of this answer."""
        self.answer_id, self.took_s, self._first = None, None, b""

    def look_for_id(self, data: bytes) -> None:
        """Find the answer's id in its first bytes."""
        if self.answer_id is None and len(self._first) < _FIRST_BYTES:
            self._first += data[:_FIRST_BYTES]
            self.answer_id = answer_id(self._first)

    def with_own_addresses(self, body: bytes) -> bytes:
        """The answer with images at the address that the client has asked, because a node's own may not be reached."""
        self.images = [name.decode() for name in _IMAGE.findall(body)]
        host = next((value for name, value in self.headers if name.lower() == b"host"), b"")
        ours = b'"%b://%b/v1/images/files/' % (self.scheme.encode(), host)
        return _IMAGE.sub(lambda found: ours + found[1] + b'"', body)

    @property
    def passed_headers(self) -> list[tuple[bytes, bytes]]:
        """For the node: the client's own, its key among them, which names its accounts and its cache domain."""
        kept = [(name, value) for name, value in self.headers if name.lower() not in _OF_ONE_HOP]
        length = [(b"content-length", b"%d" % self.body.n_bytes)] if self.body.n_bytes else []
        return [*kept, *length, (b"x-request-id", self.id.encode("ascii"))]


async def forward(client: httpx2.AsyncClient, url: str, request: Incoming, send: Send, *, node: str) -> None:
    """Have a node answer, and pass it on. Raises ElsewhereError as long as another node may answer instead."""
    began = time.monotonic()
    request.begin_anew()
    try:
        async with client.stream(
            request.method, url + request.target, headers=request.passed_headers, content=request.body.content()
        ) as response:
            kind = response.headers.get("content-type", "")
            if response.status_code < 300 and (kind.startswith(_STREAMS) or _is_large(response, request)):
                is_whole = await _pass_stream(response, request, send, node=node, kind=kind)
            else:
                await _pass_whole(response, request, send, node=node)
                is_whole = True
            if response.status_code < 300 and is_whole:  # what is refused or lost tells nothing of the model
                request.took_s = max(0.0, time.monotonic() - began - _waited_s(response))
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise ElsewhereError(unreachable=True) from error
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise ElsewhereError from error


def _waited_s(response: httpx2.Response) -> float:
    """Its queue, of which a load is part; nothing where the node tells none, such as another program at its port."""
    told = response.headers.get("x-onecard-queue-ms", "")
    return int(told) / 1000 if told.isdecimal() and told.isascii() and len(told) <= _MOST_DIGITS else 0.0


async def _pass_whole(response: httpx2.Response, request: Incoming, send: Send, *, node: str) -> None:
    """Nothing of it reaches the client before all of it is there."""
    body = await response.aread()
    if _may_go_elsewhere(response.status_code, body):
        raise ElsewhereError(response)
    request.look_for_id(body)
    if request.path.startswith("/v1/images/"):
        body = request.with_own_addresses(body)
    request.begun = True
    await pass_answer(response, request, send, node=node, body=body)


async def pass_answer(
    response: httpx2.Response, request: Incoming, send: Send, *, node: str, body: bytes | None = None
) -> None:
    """Send an answer that is here as a whole; behind signs of life an error is the end of the stream."""
    body = response.content if body is None else body
    if request.started:
        problem = ApiError(response.status_code, _sentence(body), type="server_error", code="node_refused")
        last = broken(problem, path=request.path, dialect=request.dialect, request_id=request.id)
        await send({"type": "http.response.body", "body": last})
        return
    is_head = request.method == "HEAD"  # its answer has the length of a body that does not follow
    length = response.headers.get("content-length", "0") if is_head else str(len(body))
    await send(_start(response, node, length=length))
    request.started = True
    await send({"type": "http.response.body", "body": body})


def _is_large(response: httpx2.Response, request: Incoming) -> bool:
    """Whether it is too much to hold until it is whole, and is what no other node would answer otherwise."""
    length = response.headers.get("content-length", "")
    known = length.isascii() and length.isdecimal() and len(length) <= _MOST_DIGITS
    return request.method == "GET" and known and int(length) >= _LARGE_BYTES


def _held(kind: str) -> Held:
    if kind.startswith("text/event-stream"):
        return Held()
    return Held(ends=b"\n" if kind.startswith("application/x-ndjson") else b"", begun=True)


async def _pass_stream(response: httpx2.Response, request: Incoming, send: Send, *, node: str, kind: str) -> bool:
    """Whether it came to its end; raises ElsewhereError and TransportError before its first token.

    Raises CutOffError where it is made of no events, so that nothing can tell its end.
    """
    held, sign_at = _held(kind), time.monotonic()
    try:
        async for data in response.aiter_raw():
            request.look_for_id(data)
            passing = held.take(data)
            if held.refusal is not None:
                raise ElsewhereError(httpx2.Response(503, content=held.refusal, headers={"content-type": _JSON}))
            if held.holds and not passing and time.monotonic() - sign_at > SIGN_EVERY_S:
                passing = SIGN
            sign_at = time.monotonic() if passing else sign_at
            request.begun = held.begun and bool(passing or request.started)
            await _send_some(response, passing, request, send, node=node)
    except httpx2.TransportError:
        if not request.begun:
            raise
        if not kind.startswith(_OF_EVENTS):
            raise CutOffError from None
        await send({"type": "http.response.body", "body": b"\n\n" * held.torn + _lost(request, node)})
        return False
    request.begun = True
    await _send_some(response, held.finish(), request, send, node=node)
    await send({"type": "http.response.body", "body": b""})
    return True


async def _send_some(response: httpx2.Response, data: bytes, request: Incoming, send: Send, *, node: str) -> None:
    if not data:
        return
    if not request.started:
        length = response.headers["content-length"] if _is_large(response, request) else None
        await send(_start(response, node, length=length))
        request.started = True
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _start(response: httpx2.Response, node: str, *, length: str | None = None) -> Message:
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in _OF_ONE_HOP]
    headers.append((b"x-onecard-node", node.encode()))
    if length is not None:
        headers.append((b"content-length", length.encode()))
    return {"type": "http.response.start", "status": response.status_code, "headers": headers}


def _may_go_elsewhere(status: int, body: bytes) -> bool:
    """A node that is full, ends, or cannot load the model now; a key over its limits is so on every node."""
    return status == 503 or (status == 429 and LIMIT_REACHED.encode() not in body)


def _sentence(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(jiter.from_json(body)["error"]["message"])
    return "the node refused the request"


def _lost(request: Incoming, node: str) -> bytes:
    problem = ApiError(
        502,
        f"The node '{node}' ended while it answered; what came is not complete. hint: ask again",
        type="server_error",
        code="node_lost",
    )
    return broken(problem, path=request.path, dialect=request.dialect, request_id=request.id)
