"""An edge before nodes that answer as a test says, one answer after the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx2

from server.cluster.edge import Edge
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice
from server.door.spool import Spool
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


Scripted = httpx2.Response | Awaitable[httpx2.Response]


class Cluster:
    """An edge before nodes that give these answers one after the other, whichever is asked."""

    def __init__(
        self,
        canary,
        *answers: httpx2.Response | Callable[[str], Scripted],
        n_nodes: int = 2,
        patience_s: float = 0.2,
        metrics: bool = True,
    ) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self.node))
        catalog = Catalog(Settings.model_validate(settings(canary)))
        self.names = "abcdef"[:n_nodes]
        self.spool = Spool(2**30, lambda: canary.with_name("uploads"))
        self.edge = Edge(catalog, client, spool=self.spool, key=None, patience_s=patience_s, metrics=metrics)
        self.hear()

    def hear(self, *, life: str = "1", silent: str = "") -> None:
        """All nodes tell of themselves, but those that have been silent for a minute."""
        models = {"fake": HeldModel("ready"), "org/small:Q8": HeldModel("unloaded")}
        ages = {name: 50.0 if name in silent else 0.0 for name in self.names}
        self.edge.heard(Notice(name, f"http://{name}", life, 2**30, models, age_s) for name, age_s in ages.items())

    async def node(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.host)
        answer = self.answers.pop(0)
        if not callable(answer):
            return answer
        given = answer(request.url.host)
        return given if isinstance(given, httpx2.Response) else await given

    def ask(
        self,
        path: str,
        body: dict | None,
        method: str = "POST",
        sent: list[MutableMapping[str, Any]] | None = None,
        *,
        more_to_come: bool = False,
    ) -> list[MutableMapping[str, Any]]:
        """What the client is sent, also in `sent`. `more_to_come`: the rest of its body never arrives."""
        sent = [] if sent is None else sent
        data = b"" if body is None else json.dumps(body).encode()
        headers = [(b"content-type", b"application/json"), (b"host", b"cluster:80")]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http",
                 "headers": headers, "state": {"request_id": "req_1"}}  # fmt: skip

        async def run() -> None:
            messages = [{"type": "http.request", "body": data, "more_body": more_to_come}]

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
