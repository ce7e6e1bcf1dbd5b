"""The short way of writing a stream's chunks, against the library's own."""

from __future__ import annotations

import h11
import pytest

from server.door.http1 import Connection

TEXTS = (b"data: {}\n\n", b"", b"x" * 70_000, b"\r\n", b"0")


def _told(connection: h11.Connection, request: bytes, headers: list[tuple[str, str]]) -> list[bytes | None]:
    connection.receive_data(request)
    while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass
    events = [h11.Response(status_code=200, headers=headers), *map(h11.Data, TEXTS), h11.EndOfMessage()]
    return [connection.send(event) for event in events]


@pytest.mark.parametrize(
    "request_line", [b"POST / HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n"]
)
@pytest.mark.parametrize("headers", [[], [("content-length", str(sum(map(len, TEXTS))))]])
def test_a_body_is_written_as_the_library_writes_it(request_line, headers):
    request = request_line + b"Host: here\r\n\r\n"
    ours = Connection(h11.SERVER)
    assert _told(ours, request, headers) == _told(h11.Connection(h11.SERVER), request, headers)
    assert ours.our_state in (h11.DONE, h11.MUST_CLOSE)


def test_a_second_answer_on_the_same_connection_is_framed_for_itself():
    ours, theirs = Connection(h11.SERVER), h11.Connection(h11.SERVER)
    request = b"POST / HTTP/1.1\r\nHost: here\r\n\r\n"
    for connection in (ours, theirs):
        _told(connection, request, [])
        connection.start_next_cycle()
    length = [("content-length", str(sum(map(len, TEXTS))))]
    assert _told(ours, request, length) == _told(theirs, request, length)


def test_a_chunk_after_the_end_is_refused_as_ever():
    connection = Connection(h11.SERVER)
    _told(connection, b"POST / HTTP/1.1\r\nHost: here\r\n\r\n", [])
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(b"more"))
