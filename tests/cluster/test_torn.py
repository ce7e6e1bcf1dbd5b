"""An answer whose node is lost in the middle ends where an event ends, or as a broken connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import httpx2
import pytest

from server.cluster.forwarding import CutOffError
from server.cluster.notices import Watch
from server.cluster.stream import MOST_HELD_BYTES, Held
from server.errors import ApiError
from tests.cluster.scripted import CHAT, PATH, SAYS, Broken, Cluster, answer, said

TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


@pytest.mark.parametrize(
    ("path", "kind", "pieces", "before"),
    [
        (PATH, "text/event-stream", [TOKEN, TOKEN[:20]], TOKEN),
        (PATH, "text/event-stream", [TOKEN + TOKEN[:-1]], TOKEN),
        ("/api/chat", "application/x-ndjson", [b'{"a":1}\n{"b"'], b'{"a":1}\n'),
    ],
)
def test_a_part_of_an_event_is_not_passed_on(canary_path, path, kind, pieces, before):
    """Given a node that is lost in the middle of an event, then each line that its client reads can be read."""
    told = said(Cluster(canary_path, answer(kind, *pieces)).ask(path, CHAT))
    assert told.startswith(before)
    json.loads(told.removeprefix(before).removeprefix(b"data: "))


def test_a_line_that_is_lost_before_its_end_begins_anew(canary_path):
    cluster = Cluster(
        canary_path,
        answer("application/x-ndjson", b'{"a"'),
        answer("application/x-ndjson", b'{"b":1}\n', whole=True),
    )
    assert said(cluster.ask("/api/chat", CHAT)) == b'{"b":1}\n'


def test_a_stream_of_any_pieces_is_the_same_stream():
    whole = b"".join(b"data: {%d}\n\n" % n for n in range(30)) + b"data: [DONE]"
    for size in range(1, 40):
        held = Held()
        pieces = [held.take(whole[at : at + size]) for at in range(0, len(whole), size)]
        assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
        assert b"".join(pieces) + held.finish() == whole


def test_a_very_long_event_is_not_held_and_is_told_as_torn(canary_path):
    long = b"data: " + b"a" * (MOST_HELD_BYTES + 10)
    held = Held()
    assert held.take(TOKEN) == TOKEN
    passed = held.take(long)
    assert len(passed) > MOST_HELD_BYTES
    assert held.torn
    assert passed + held.take(b"b\n") + held.take(b"\n" + TOKEN) == long + b"b\n\n" + TOKEN
    assert not held.torn

    told = said(Cluster(canary_path, answer("text/event-stream", TOKEN, long)).ask(PATH, CHAT))
    *_, last = told.strip().split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "node_lost"


def sent_before(cluster: Cluster, error: type[Exception], path: str, body: dict[str, Any] | None, method: str) -> int:
    sent: list[MutableMapping[str, Any]] = []
    with pytest.raises(error):
        cluster.ask(path, body, method, sent)
    return sum(len(message.get("body", b"")) for message in sent)


def test_sound_that_is_cut_off_ends_as_a_broken_connection(canary_path):
    """Given a node that is lost in the middle of a sound, then no text is put behind it."""
    cluster = Cluster(canary_path, answer("audio/wav", b"RIFF" * 100))
    assert sent_before(cluster, CutOffError, "/v1/audio/speech", CHAT, "POST") == 400


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_large_file_passes_as_it_comes_with_its_length(canary_path, is_whole):
    """Given a file of more than is held, then its pieces pass one by one; one that is cut off is no whole file."""
    piece, n_pieces = b"x" * 2**18, 8
    length = {"content-length": str(len(piece) * n_pieces), "content-type": "application/octet-stream"}
    stream = Broken(*[piece] * (n_pieces if is_whole else 3), whole=is_whole)
    cluster = Cluster(canary_path, httpx2.Response(200, headers=length, stream=stream))
    path = "/v1/files/file-1/content"
    if not is_whole:
        assert sent_before(cluster, CutOffError, path, None, "GET") == 3 * len(piece)
        return
    sent = cluster.ask(path, None, "GET")
    assert [len(message["body"]) for message in sent[1:]] == [len(piece)] * n_pieces + [0]
    assert (b"content-length", length["content-length"].encode()) in sent[0]["headers"]


def test_a_body_that_comes_too_slowly_is_refused(canary_path, monkeypatch):
    """Behind Ray's proxy nothing else ends it."""
    monkeypatch.setattr("server.cluster.bodies.ARRIVAL_S", 0.05)
    with pytest.raises(ApiError, match=r"Less than 16 KiB of the request's body arrived") as refused:
        Cluster(canary_path).ask(PATH, CHAT, more_to_come=True)
    assert (refused.value.status, refused.value.code) == (408, "request_too_slow")


@pytest.mark.parametrize(
    "told", [b"hello", b"[]", b"{}", b'{"memory":3,"models":4}', b'{"a":%s}' % (b"9" * 5000), b"[" * 100_000]
)
def test_another_program_at_a_node_s_port_is_a_node_that_does_not_answer(told):
    async def look() -> None:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=told))
        async with httpx2.AsyncClient(transport=transport) as client:
            await Watch("a", "http://a", "1", client).look()

    with pytest.raises(httpx2.HTTPError):
        asyncio.run(look())


def test_what_is_said_again_is_as_it_was(canary_path):
    """Given a stream that comes as it should, then nothing of it is other than its node said it."""
    assert (
        said(Cluster(canary_path, answer("text/event-stream", SAYS[:60], SAYS[60:], whole=True)).ask(PATH, CHAT))
        == SAYS
    )
