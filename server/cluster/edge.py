"""The edge of a cluster as pure ASGI: finds a node for each request, and another where it ends before its first token.

Keys, hosts and sizes are the gate's, which stands in front. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import httpx2
from starlette.requests import ClientDisconnect

from server.cluster.asks import Wanted, wanted
from server.cluster.facts import Ask
from server.cluster.federation import federated
from server.cluster.forwarding import ElsewhereError, Incoming, forward, pass_answer
from server.cluster.router import Router, by_hash
from server.cluster.stream import broken
from server.error_bodies import dialect_of
from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Receive, Scope, Send

    from server.cluster.notices import Notice
    from server.settings.catalog import Catalog

MOST_TRIES: Final = 3
"""Nodes that one request is given to."""
MOST_ANSWERS: Final = 50_000
"""Whose node is remembered, for requests that go on from them."""
METRICS_WITHIN_S: Final = 2.0
_OF_ONE_NODE: Final = ("/v1/memory/lease", "/v1/config/reload")
_AT_HOME: Final = ("/v1/files", "/v1/batches", "/v1/fine_tuning")
_HELD: Final = ("/v1/responses/", "/v1/images/files/")
_READING: Final = frozenset(("GET", "HEAD"))
_UNKNOWN: Final = ""
"""In place of the name of a model that is none, of which clients may say any number."""


class Edge:
    """One per edge process. `key` is the cluster's own on its nodes; None where they need none."""

    def __init__(self, catalog: Catalog, client: httpx2.AsyncClient, *, key: str | None) -> None:
        self._catalog = catalog
        self._client = client
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._router = Router()
        self._urls: dict[str, str] = {}
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._keeper: str | None = None
        """The node that has answered for files; several nodes of one machine have one folder for them."""
        self._n_sent: dict[tuple[str, str], int] = {}
        """(node, reason) -> requests."""
        self._n_repeats = 0

    def heard(self, notices: Iterable[Notice]) -> None:
        """All nodes that there are, as they told of themselves."""
        now, present = time.monotonic(), set()
        for notice in notices:
            present.add(notice.node)
            self._urls[notice.node] = notice.url
            self._router.report(notice.report(now))
        for gone in self._urls.keys() - present:
            self._router.forget(gone)
            del self._urls[gone]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises ApiError before its answer has begun, and ClientDisconnect."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        path, method = scope["path"], scope["method"]
        if path.startswith(_OF_ONE_NODE):
            raise ApiError(400, f"{path} is of one server, and this is a cluster. hint: ask the node itself")
        if method in _READING and (own := await self._own(path)) is not None:
            kind, body = own
            headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
            return
        request = await _read(scope, receive)
        work = asyncio.create_task(self._serve(request, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not work.done():
                work.cancel()  # closes the connection to the node, which is how it learns that none listens
            await asyncio.wait({work, leaving})
        if work.cancelled():
            raise ClientDisconnect
        work.result()

    # What the edge itself answers

    async def _own(self, path: str) -> tuple[bytes, bytes] | None:
        match path:
            case "/health":
                return b"application/json", b'{"status":"ok"}'
            case "/ready":
                if not self._up():
                    raise self._no_node()
                return b"application/json", b'{"status":"ready"}'
            case "/v1/cluster":
                return b"application/json", json.dumps(self._status()).encode()
            case "/metrics":
                return b"text/plain; version=0.0.4; charset=utf-8", (await self._metrics()).encode()
        return None

    def _status(self) -> dict[str, Any]:
        now = time.monotonic()
        nodes = [
            {
                "node": name,
                "url": self._urls[name],
                "up": self._router.is_up(name, now),
                "in_flight": state.n_in_flight,
                "free_bytes": state.report.free_bytes,
                "silent_s": round(now - state.report.at_s, 1),
                "models": {
                    model: {"state": held.state, "running": held.running, "waiting": held.waiting}
                    for model, held in state.report.models.items()
                    if held.state != "unloaded" or held.waiting
                },
            }
            for name, state in sorted(self._router.nodes.items())
        ]
        return {"nodes": nodes, "repeats": self._n_repeats}

    async def _metrics(self) -> str:
        nodes = self._up()
        answers = await asyncio.gather(
            *(
                self._client.get(self._urls[node] + "/metrics", headers=self._headers, timeout=METRICS_WITHIN_S)
                for node in nodes
            ),
            return_exceptions=True,
        )
        pages = {
            node: answer.text
            for node, answer in zip(nodes, answers, strict=True)
            if isinstance(answer, httpx2.Response) and answer.is_success
        }
        own = [
            "# HELP onecard_cluster_nodes Nodes of the cluster, and those whose metrics this page has.",
            "# TYPE onecard_cluster_nodes gauge",
            f'onecard_cluster_nodes{{state="known"}} {len(self._urls)}',
            f'onecard_cluster_nodes{{state="read"}} {len(pages)}',
            "# HELP onecard_cluster_requests_total Requests sent to a node, by what it was chosen for.",
            "# TYPE onecard_cluster_requests_total counter",
            *(
                f'onecard_cluster_requests_total{{node="{node}",reason="{reason}"}} {count}'
                for (node, reason), count in sorted(self._n_sent.items())
            ),
            "# HELP onecard_cluster_repeats_total Requests that were given to another node before their first token.",
            "# TYPE onecard_cluster_repeats_total counter",
            f"onecard_cluster_repeats_total {self._n_repeats}",
        ]
        return federated(pages) + "\n".join(own) + "\n"

    # What nodes answer

    async def _serve(self, request: Incoming, send: Send) -> None:
        asked = self._wanted(request)
        refusal: tuple[httpx2.Response, str] | None = None
        at_home = _is_at_home(request)
        for n_before, (node, reason) in enumerate(self._nodes_for(request, asked)):
            self._n_repeats += n_before > 0 and request.method == "POST"
            self._n_sent[node, reason] = self._n_sent.get((node, reason), 0) + 1
            self._router.begin(asked.ask, node, time.monotonic())
            try:
                await forward(self._client, self._urls[node], request, send, node=node)
            except ElsewhereError as why:
                if why.unreachable:
                    self._router.failed(node, time.monotonic())
                if why.refusal is not None:
                    refusal = why.refusal, node
                if at_home and not _is_kept_elsewhere(why.refusal):
                    break
            else:
                self._keeper = node if at_home else self._keeper
                for name in (request.answer_id, *request.images):
                    self._remember(name, node)
                return
            finally:
                self._router.end(asked.ask, node, took_s=request.took_s)
        if refusal is not None:
            await pass_answer(refusal[0], request, send, node=refusal[1])
            return
        problem = self._no_node()
        if not request.started:
            raise problem
        last = broken(problem, path=request.path, dialect=request.dialect, request_id=request.id)
        await send({"type": "http.response.body", "body": last})

    def _nodes_for(self, request: Incoming, asked: Wanted) -> Iterator[tuple[str, str]]:
        """Nodes one after the other, each for the case that those before gave no token, and why."""
        tried: set[str] = set()
        fixed = self._fixed(request, asked)
        for node in fixed or ():
            if self._router.is_reachable(node, time.monotonic()):
                yield node, "owner"
        while fixed is None and len(tried) < MOST_TRIES:
            choice = self._router.choose(asked.ask, time.monotonic(), without=frozenset(tried))
            if choice is None:
                return
            tried.add(choice.node)
            yield choice.node, choice.reason

    def _fixed(self, request: Incoming, asked: Wanted) -> list[str] | None:
        """Nodes that alone can answer, because they hold what is asked for; None where any can."""
        held = asked.goes_on_from
        for prefix in _HELD:
            if request.path.startswith(prefix):
                held = request.path.removeprefix(prefix).split("/")[0]
        if held is not None and held in self._answers:
            return [self._answers[held]]
        if _is_at_home(request):
            return self._home()
        if request.method in _READING or asked.ask.model == _UNKNOWN:
            return sorted(self._home(), key=lambda node: not self._router.is_up(node, time.monotonic()))[:MOST_TRIES]
        return self._home()[:1] if request.method != "POST" else None

    def _home(self) -> list[str]:
        """The node that has files, then others by hash."""
        return sorted(by_hash("home", self._urls), key=lambda node: node != self._keeper)

    def _wanted(self, request: Incoming) -> Wanted:
        asked = wanted(request.body, default_model=self._catalog.entries[0].name if self._catalog.entries else "")
        name = asked.ask.model
        if request.path.startswith("/v1/models/"):
            name = request.path.removeprefix("/v1/models/").rpartition("/")[0]
        entry = self._catalog.resolve(name)
        if entry is not None:
            name = entry.name
        elif not self._router.knows(name):
            name = _UNKNOWN
        return Wanted(Ask(name, asked.ask.head, asked.ask.prompt_tokens), asked.goes_on_from)

    def _remember(self, answer: str | None, node: str) -> None:
        if answer is None:
            return
        self._answers[answer] = node
        if len(self._answers) > MOST_ANSWERS:
            self._answers.popitem(last=False)

    def _up(self) -> list[str]:
        now = time.monotonic()
        return sorted(node for node in self._urls if self._router.is_up(node, now))

    def _no_node(self) -> ApiError:
        n_up, n_known = len(self._up()), len(self._urls)
        return ApiError(
            503,
            f"No node could answer: {n_up} of {n_known} are up. hint: ask again; see `onecard cluster status`",
            type="server_error",
            code="no_node",
            headers={"retry-after": "2"},
        )


def _is_at_home(request: Incoming) -> bool:
    """Whether one node alone has what is asked for; a model that is deleted was made there."""
    is_deleted = request.method == "DELETE" and request.path.startswith("/v1/models/")
    return is_deleted or request.path.startswith(_AT_HOME)


def _is_kept_elsewhere(refusal: httpx2.Response | None) -> bool:
    """Another node of the same machine holds the folder of files."""
    return refusal is not None and b'"files_elsewhere"' in refusal.content


async def _live(receive: Receive, send: Send) -> None:
    """There is nothing to start or to end."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _read(scope: Scope, receive: Receive) -> Incoming:
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    query = scope["query_string"]
    target = scope.get("raw_path", scope["path"].encode()).decode("ascii") + (f"?{query.decode()}" if query else "")
    dialect = dialect_of(scope["path"], scope["headers"])
    body, request_id = b"".join(parts), scope["state"]["request_id"]
    return Incoming(
        scope["method"], target, scope["path"], list(scope["headers"]), body, request_id, dialect, scope["scheme"]
    )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
