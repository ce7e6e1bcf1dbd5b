"""What a node may do to an answer on its way: end before its first byte, between signs of life, or in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx2
import pytest

from server.cluster.edge import Edge
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice
from server.settings.catalog import Catalog
from server.settings.config import Settings
from tests.http.conftest import settings

SAYS = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'


class Broken(httpx2.AsyncByteStream):
    """A body whose connection is lost behind its pieces, unless `whole`."""

    def __init__(self, *pieces: bytes, whole: bool = False) -> None:
        self.pieces, self.whole = pieces, whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece
        if not self.whole:
            raise httpx2.ReadError("lost")


def answer(kind: str, *pieces: bytes, whole: bool = False, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": kind}, stream=Broken(*pieces, whole=whole))


class Cluster:
    """An edge before nodes that give these answers one after the other, whichever is asked."""

    def __init__(self, canary, *answers: httpx2.Response, n_nodes: int = 2) -> None:
        self.answers, self.asked = list(answers), []
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self.node))
        self.edge = Edge(Catalog(Settings.model_validate(settings(canary))), client, key=None)
        models = {"fake": HeldModel("ready"), "org/small:Q8": HeldModel("unloaded")}
        self.edge.heard(Notice(name, f"http://{name}", "1", 2**30, models) for name in "abcdef"[:n_nodes])

    def node(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.host)
        return self.answers.pop(0)

    def ask(self, path: str, body: dict | None, method: str = "POST") -> list[dict]:
        """What the client is sent."""
        sent: list[dict] = []
        data = b"" if body is None else json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"host", b"cluster:80")]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http",
                 "headers": headers, "state": {"request_id": "req_1"}}  # fmt: skip

        async def run() -> None:
            messages = [{"type": "http.request", "body": data}]

            async def receive() -> dict:
                if messages:
                    return messages.pop()
                await asyncio.Event().wait()
                raise AssertionError

            async def send(message: dict) -> None:
                assert (message["type"] == "http.response.start") == (not sent), "a status before the body, and once"
                sent.append(message)

            await self.edge(scope, receive, send)

        asyncio.run(run())
        return sent


def said(sent: list[dict]) -> bytes:
    assert sent[0]["status"] == 200
    return b"".join(message["body"] for message in sent[1:])


CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize(("path", "kind"), [("/api/chat", "application/x-ndjson"), ("/v1/audio/speech", "audio/wav")])
def test_a_stream_that_is_lost_before_its_first_byte_begins_anew(canary_path, path, kind):
    cluster = Cluster(canary_path, answer(kind), answer(kind, b"all of it", whole=True))
    assert said(cluster.ask(path, CHAT)) == b"all of it"
    assert len(set(cluster.asked)) == 2


def test_where_no_node_is_left_a_stream_that_showed_life_ends_with_an_error(canary_path):
    lost = [answer("text/event-stream", b": loading 40%\n\n") for _ in range(2)]
    told = said(Cluster(canary_path, *lost).ask("/v1/chat/completions", CHAT))
    assert told.startswith(b": loading 40%\n\n")
    assert b'"no_node"' in told
    assert b"[DONE]" not in told


def test_an_answer_that_began_anew_is_known_by_its_last_id(canary_path):
    created = b'event: response.created\ndata: {"response":{"id":"resp_%b"}}\n\n'
    word = b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n'
    cluster = Cluster(
        canary_path,
        answer("text/event-stream", created % b"first"),
        answer("text/event-stream", created % b"second", word, whole=True),
        answer("application/json", b"{}", whole=True),
    )
    assert b"resp_second" in said(cluster.ask("/v1/responses", {"model": "fake", "input": "hello", "stream": True}))
    cluster.ask("/v1/responses/resp_second", None, "GET")
    assert cluster.asked[2] == cluster.asked[1] != cluster.asked[0]
