"""HTTP/1.1 on the wire, stricter than the library's default, with refusals in OpenAI's shape.

What two HTTP readers could understand differently (bare line feeds, folded header lines) is refused, so that nothing
can be smuggled behind a proxy. Everything behind the parser is `server.door.gate`'s.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
from typing import TYPE_CHECKING, Any

import h11
from h11._receivebuffer import ReceiveBuffer
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import ApiError

if TYPE_CHECKING:
    from uvicorn.config import Config

log = logging.getLogger("onecard.http")
MAX_HEAD_BYTES = 32 * 1024
_FOLDS = (b" ", b"\t")


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
        return lines


class Connection(h11.Connection):
    """A connection whose chunks skip the library's bookkeeping: a stream is made of them, and they change no state."""

    _chunked = False

    def send(self, event: h11.Event) -> Any:
        """The bytes of an event; None for the end of the connection. Raises LocalProtocolError."""
        if self._chunked and isinstance(event, h11.Data) and self.our_state is h11.SEND_BODY:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data) if event.data else b""
        sent = super().send(event)
        if isinstance(event, h11.Response):
            self._chunked = sent is not None and b"transfer-encoding: chunked" in sent.lower()
        return sent


class StrictHttp(H11Protocol):
    """uvicorn's protocol over the strict buffer."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = Connection(h11.SERVER, MAX_HEAD_BYTES)
        self.conn._receive_buffer = StrictBuffer()  # noqa: SLF001  (h11 has no other way; a test holds it to this)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and close. The library calls it while it handles the parser's exception."""
        problem = sys.exc_info()[1]
        why = str(problem) if isinstance(problem, h11.RemoteProtocolError) else msg
        # Behind a colon the parser quotes what it got, and that may be a key.
        why = why.partition(":")[0]
        log.warning("invalid_http peer=%s reason=%s", self.client[0] if self.client else "unknown", json.dumps(why))
        body = ApiError(400, "The request is not valid HTTP/1.1.", code="invalid_http").body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"x-request-id", f"req_{secrets.token_hex(16)}".encode("ascii")),
            (b"server", b"onecard"),
            (b"connection", b"close"),
        ]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            events = (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
