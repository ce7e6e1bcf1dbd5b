"""HTTP/1.1 on the wire, stricter than the library's default, with refusals in OpenAI's shape.

What two HTTP readers could understand differently (bare line feeds, folded header lines, a length said twice) is
refused, so that nothing can be smuggled behind a proxy; who sends too slowly or in crumbs is cut. Everything behind the
parser is `server.door.gate`'s.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config

log = logging.getLogger("onecard.http")
MAX_HEAD_BYTES = 32 * 1024
ARRIVAL_S = 15.0
"""A head has to be there within so long, and so has each next part of a body."""
ARRIVAL_BYTES = 16 * 1024
"""What is a part: less in that time is an attack, or a line that no request gets through."""
FREE_CHUNKS = 4096
BYTES_PER_CHUNK = 64
"""On average, of chunks beyond the free ones: each costs the event loop 5 us, whatever is in it."""
_VERSIONS = (b"1.0", b"1.1")
_LENGTH = b"content-length:"
_FOLDS = (b" ", b"\t")


def too_slow() -> ApiError:
    """Of a body whose next part is not there in time."""
    return ApiError(
        408,
        f"Less than {ARRIVAL_BYTES >> 10} KiB of the request's body arrived within {ARRIVAL_S:g} s. "
        "hint: send the body at once after the head",
        code="request_too_slow",
        headers={"connection": "close"},
    )


class StrictBuffer(ReceiveBuffer):
    """Received bytes whose heads must end every line with CR LF and fold none."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head, or None where it is not complete. Raises RemoteProtocolError."""
        before = bytes(self._data)
        lines = super().maybe_extract_lines()
        if lines is None:
            return None
        head = before[: len(before) - len(self._data)]
        if len(head) > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=431)
        if head.count(b"\n") != head.count(b"\r\n") or b"\r" in head.replace(b"\r\n", b""):
            raise h11.RemoteProtocolError("a line of the head does not end in CR LF")
        if any(line.startswith(_FOLDS) for line in lines):
            raise h11.RemoteProtocolError("a header line is folded")
        lengths = [line for line in lines if line[: len(_LENGTH)].lower() == _LENGTH]
        if len(lengths) > 1 or any(b"," in line for line in lengths):
            raise h11.RemoteProtocolError("the head has more than one Content-Length")
        return lines


class Connection(h11.Connection):
    """A connection whose chunks skip the library's bookkeeping: a stream is made of them, and they change no state.

    What comes in has a version that is known, and no body in crumbs.
    """

    _chunked = False
    _n_chunks = _n_bytes = 0
    n_heads = 0
    """Requests that have begun."""

    def next_event(self) -> Any:
        """The next event of what was received. Raises RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._n_chunks += event.chunk_start
            self._n_bytes += len(event.data)
            if self._n_chunks > FREE_CHUNKS + self._n_bytes // BYTES_PER_CHUNK:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        elif isinstance(event, h11.Request):
            self.n_heads += 1
            self._n_chunks = self._n_bytes = 0
            if event.http_version not in _VERSIONS:
                raise h11.RemoteProtocolError("the version of HTTP is unknown")
        return event

    def send(self, event: h11.Event) -> Any:
        """The bytes of an event; None for the end of the connection. Raises LocalProtocolError."""
        if self._chunked and isinstance(event, h11.Data) and self.our_state is h11.SEND_BODY:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data) if event.data else b""
        sent = super().send(event)
        if isinstance(event, h11.Response):
            self._chunked = sent is not None and b"transfer-encoding: chunked" in sent.lower()
        return sent


class StrictHttp(H11Protocol):
    """uvicorn's protocol over the strict buffer, with a time within which a request has to arrive."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn: Connection = Connection(h11.SERVER, MAX_HEAD_BYTES)
        self.conn._receive_buffer = StrictBuffer()  # noqa: SLF001  (h11 has no other way; a test holds it to this)
        self._arrival: asyncio.TimerHandle | None = None
        self._n_arrived = 0
        """Bytes since the timer was set."""

    def connection_made(self, transport: Any) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._n_arrived += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        """Go through what is there, and wait for the rest of it: a body has its own time, not what its head left."""
        n_heads = self.conn.n_heads
        super().handle_events()
        in_body = self.conn.their_state is h11.SEND_BODY
        if not in_body and not (self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]):
            self._expect_nothing()
        elif self._arrival is None or (in_body and (self.conn.n_heads > n_heads or self._n_arrived >= ARRIVAL_BYTES)):
            self._expect()

    def _should_upgrade(self) -> bool:
        """Never: the request is answered as HTTP. uvicorn's own would tell the log twice to install a library."""
        return False

    def _expect(self) -> None:
        self._expect_nothing()
        self._arrival = self.loop.call_later(ARRIVAL_S, self._not_arrived)

    def _expect_nothing(self) -> None:
        self._n_arrived = 0
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _not_arrived(self) -> None:
        self._arrival = None
        if self.flow.read_paused:  # it is we who don't read
            self._expect()
        elif not self.transport.is_closing():
            in_body = self.conn.their_state is h11.SEND_BODY
            if in_body or self.conn.trailing_data[0]:  # not who has only connected
                log.warning("request_too_slow peer=%s", self._peer())
            if in_body and self.conn.our_state is h11.SEND_RESPONSE:
                self._refuse(too_slow())
                self.cycle.disconnected = True  # the application has nothing more to say
                self.cycle.message_event.set()
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and close. The library calls it while it handles the parser's exception."""
        problem = sys.exc_info()[1]
        why = str(problem) if isinstance(problem, h11.RemoteProtocolError) else msg
        # Behind a colon the parser quotes what it got, and that may be a key.
        why = why.partition(":")[0]
        log.warning("invalid_http peer=%s reason=%s", self._peer(), json.dumps(why))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(ApiError(400, "The request is not valid HTTP/1.1.", code="invalid_http"))
        self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        body = error.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"x-request-id", f"req_{secrets.token_hex(16)}".encode("ascii")),
            (b"server", b"onecard"),
            (b"connection", b"close"),
        ]
        events = (
            h11.Response(status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase.encode()),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")

    def _peer(self) -> str:
        return self.client[0] if self.client else "unknown"
