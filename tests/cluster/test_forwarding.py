"""What a node may do to an answer on its way: end before its first byte, between signs of life, or in the middle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, MutableMapping
from typing import Any

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

    def __init__(self, canary, *answers: httpx2.Response | Callable[[str], httpx2.Response], n_nodes: int = 2) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self.node))
        self.edge = Edge(Catalog(Settings.model_validate(settings(canary))), client, key=None)
        models = {"fake": HeldModel("ready"), "org/small:Q8": HeldModel("unloaded")}
        self.edge.heard(Notice(name, f"http://{name}", "1", 2**30, models) for name in "abcdef"[:n_nodes])

    def node(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.host)
        answer = self.answers.pop(0)
        return answer(request.url.host) if callable(answer) else answer

    def ask(self, path: str, body: dict | None, method: str = "POST") -> list[MutableMapping[str, Any]]:
        """What the client is sent."""
        sent: list[MutableMapping[str, Any]] = []
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

            async def send(message: MutableMapping[str, Any]) -> None:
                assert (message["type"] == "http.response.start") == (not sent), "a status before the body, and once"
                sent.append(message)

            await self.edge(scope, receive, send)

        asyncio.run(run())
        return sent


def said(sent: list[MutableMapping[str, Any]]) -> bytes:
    assert sent[0]["status"] == 200
    return b"".join(message["body"] for message in sent[1:])


PATH = "/v1/chat/completions"
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "stream": True}


@pytest.mark.parametrize(("path", "kind"), [("/api/chat", "application/x-ndjson"), ("/v1/audio/speech", "audio/wav")])
def test_a_stream_that_is_lost_before_its_first_byte_begins_anew(canary_path, path, kind):
    cluster = Cluster(canary_path, answer(kind), answer(kind, b"all of it", whole=True))
    assert said(cluster.ask(path, CHAT)) == b"all of it"
    assert len(set(cluster.asked)) == 2


def test_where_no_node_is_left_a_stream_that_showed_life_ends_with_an_error(canary_path):
    lost = [answer("text/event-stream", b": loading 40%\n\n") for _ in range(2)]
    told = said(Cluster(canary_path, *lost).ask(PATH, CHAT))
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


def test_reading_goes_on_at_another_node_where_one_is_gone(canary_path):
    def gone(host: str) -> httpx2.Response:
        raise httpx2.ConnectError(host)

    cluster = Cluster(canary_path, gone, answer("application/json", b"{}", whole=True))
    assert said(cluster.ask("/v1/models", None, "GET")) == b"{}"
    assert len(set(cluster.asked)) == 2


def test_files_are_asked_for_at_the_node_that_has_their_folder(canary_path):
    """Given nodes of one machine, of which another holds the folder, then it is found, and asked first from then on."""
    refusal = json.dumps({"error": {"code": "files_elsewhere", "message": "another server"}}).encode()
    whole = [answer("application/json", b"{}", whole=True) for _ in range(3)]
    cluster = Cluster(canary_path, answer("application/json", refusal, whole=True, status=503), *whole)
    cluster.ask("/v1/files", None, "GET")
    cluster.ask("/v1/fine_tuning/jobs", {"model": "fake", "training_file": "file-1"})
    cluster.ask("/v1/models/ft:fake:x:1", None, "DELETE")
    first, *rest = cluster.asked
    assert len(set(rest)) == 1
    assert first not in rest


def test_files_are_not_taken_elsewhere_while_their_node_is_full(canary_path):
    refusal = json.dumps({"error": {"code": "draining", "message": "ends"}}).encode()
    cluster = Cluster(canary_path, answer("application/json", refusal, whole=True, status=503))
    assert cluster.ask("/v1/batches", {})[0]["status"] == 503


def test_names_of_models_that_are_none_are_not_kept(canary_path):
    cluster = Cluster(canary_path, *(answer("application/json", b"{}", whole=True) for _ in range(20)))
    for n in range(20):
        cluster.ask(PATH, {**CHAT, "model": f"none{n}\ud800"})
    assert len(set(cluster.asked)) == 1
    router = cluster.edge._router
    assert len(router._models) + len(router._holders) + len(router._ranks) < 10


def test_an_image_is_fetched_from_the_cluster_s_address_where_it_was_drawn(canary_path):
    def drawn(host: str) -> httpx2.Response:
        told = {"data": [{"url": f"http://{host}/v1/images/files/img_1a.png"}]}
        return answer("application/json", json.dumps(told).encode(), whole=True)

    cluster = Cluster(canary_path, drawn, answer("image/png", b"png", whole=True))
    told = json.loads(said(cluster.ask("/v1/images/generations", {"model": "fake", "prompt": "a"})))
    assert told == {"data": [{"url": "http://cluster:80/v1/images/files/img_1a.png"}]}
    cluster.edge._keeper = ({"a", "b"} - {*cluster.asked}).pop()
    assert said(cluster.ask("/v1/images/files/img_1a.png", None, "GET")) == b"png"
    assert cluster.asked[1] == cluster.asked[0]


def test_signs_of_life_alone_never_begin_a_stream(canary_path, monkeypatch):
    """Given a load of longer than anything is held back, when its node dies, then another one answers."""
    monkeypatch.setattr("server.cluster.forwarding.HOLD_S", 0.0)
    lost = answer("text/event-stream", b": loading 40%\n\n", b": loading 80%\n\n")
    told = said(Cluster(canary_path, lost, answer("text/event-stream", SAYS, whole=True)).ask(PATH, CHAT))
    assert told == b": loading 40%\n\n: loading 80%\n\n" + SAYS


def test_what_is_refused_says_nothing_of_how_long_a_model_takes(canary_path):
    cluster = Cluster(canary_path, *(answer("application/json", b"{}", whole=True, status=400) for _ in range(9)))
    before = cluster.edge._router._model("fake").job_s
    for _ in range(9):
        cluster.ask(PATH, CHAT)
    assert cluster.edge._router._model("fake").job_s == before
