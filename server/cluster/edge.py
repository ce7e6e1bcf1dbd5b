"""The edge of a cluster as pure ASGI: finds a node for each request, and another where it ends before its first token.

Keys, hosts and sizes are the gate's, which stands in front. Knows nothing of Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from server.cluster.asks import Wanted, wanted
from server.cluster.attempts import Attempts
from server.cluster.bodies import received
from server.cluster.facts import Ask
from server.cluster.forwarding import ElsewhereError, Incoming, forward, pass_answer
from server.cluster.overview import Overview
from server.cluster.router import Router, by_hash
from server.cluster.stream import broken
from server.error_bodies import dialect_of
from server.errors import ApiError
from server.schemas.body import off_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import httpx2
    from starlette.types import Receive, Scope, Send

    from server.cluster.bodies import Body
    from server.cluster.notices import Notice
    from server.door.spool import Spool
    from server.settings.catalog import Catalog

PATIENCE_S: Final = 15.0
"""For which a request waits for a node that is known and does not answer: its server is started again."""
MOST_ANSWERS: Final = 50_000
"""Whose node is remembered, for requests that go on from them."""
_OF_ONE_NODE: Final = ("/v1/memory/lease", "/v1/config/reload")
_AT_HOME: Final = ("/v1/files", "/v1/batches", "/v1/fine_tuning")
_HELD: Final = ("/v1/responses/", "/v1/images/files/")
_READING: Final = frozenset(("GET", "HEAD"))
_UNKNOWN: Final = ""
"""In place of the name of a model that is none, of which clients may say any number."""


class Edge:
    """One per edge process. `key` is the cluster's own on its nodes; None where they need none.

    `spool` holds what is long of forms.
    """

    def __init__(
        self,
        catalog: Catalog,
        client: httpx2.AsyncClient,
        *,
        spool: Spool,
        key: str | None,
        metrics: bool = True,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._catalog = catalog
        self._client = client
        self._spool = spool
        self._router = Router()
        self._urls: dict[str, str] = {}
        self._overview = Overview(self._router, self._urls, client, key=key, metrics=metrics)
        self._patience_s = patience_s
        self._news = asyncio.Event()
        """Set at the next word of the nodes, and replaced."""
        self._open: dict[str, dict[asyncio.Timeout, Incoming]] = {}
        """Node -> the ends of waiting for it, of what it was asked."""
        self._answers: OrderedDict[str, str] = OrderedDict()
        self._keeper: str | None = None
        """The node that has answered for files; several nodes of one machine have one folder for them."""

    def heard(self, notices: Iterable[Notice]) -> None:
        """All nodes that there are, as they told of themselves."""
        now, present = time.monotonic(), set()
        for notice in notices:
            present.add(notice.node)
            self._urls[notice.node] = notice.url
            self._router.report(notice.report(now))
        for gone in self._urls.keys() - present:
            self._router.forget(gone)
            self._overview.forget(gone)
            del self._urls[gone]
        self._give_up_on_silent(now)
        self._news.set()
        self._news = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises ApiError before its answer has begun, and ClientDisconnect."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            self._spool.close()
            return
        path, method = scope["path"], scope["method"]
        if path.startswith(_OF_ONE_NODE):
            raise ApiError(
                400,
                f"{path} is of one server, and this is a cluster. hint: ask the node itself (its `url`: /v1/cluster)",
            )
        if method in _READING and (own := await self._overview.answer(path)) is not None:
            kind, body = own
            headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
            return
        async with received(scope, receive, self._spool) as sent:
            await self._answer(_incoming(scope, sent), receive, send)

    # What nodes answer

    async def _answer(self, request: Incoming, receive: Receive, send: Send) -> None:
        """As long as its client is there. Raises ApiError before its answer has begun, and ClientDisconnect."""
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

    async def _serve(self, request: Incoming, send: Send) -> None:
        attempts = await self._attempts(request)
        until = time.monotonic() + self._patience_s
        while not attempts.over:
            found = attempts.next(self._router, time.monotonic())
            if found is None:
                if not (attempts.may_wait and await self._heard_before(until)):
                    break
            elif await self._ask(attempts, *found, request, send):
                return
        if attempts.refusal is not None:
            answer, node = attempts.refusal
            await pass_answer(answer, request, send, node=node)
            return
        problem = self._overview.lost(attempts.n_lost) if attempts.over else self._overview.no_node()
        if not request.started:
            raise problem
        last = broken(problem, path=request.path, dialect=request.dialect, request_id=request.id)
        await send({"type": "http.response.body", "body": last})

    async def _ask(self, attempts: Attempts, node: str, reason: str, request: Incoming, send: Send) -> bool:
        """Whether the client has its answer."""
        self._overview.sent(node, reason, again=attempts.n_asked > 0 and request.method == "POST")
        attempts.n_asked += 1
        self._router.begin(attempts.ask, node, time.monotonic())
        try:
            async with self._not_silent(node, request):
                await forward(self._client, self._urls[node], request, send, node=node)
        except ElsewhereError as why:
            if why.unreachable:
                self._router.failed(node, time.monotonic())
            attempts.met(node, why)
            return False
        finally:
            self._router.end(attempts.ask, node, took_s=request.took_s)
        self._keeper = node if attempts.in_turn else self._keeper
        for name in (request.answer_id, *request.images):
            self._remember(name, node)
        return True

    @asynccontextmanager
    async def _not_silent(self, node: str, request: Incoming) -> AsyncIterator[None]:
        """Raises ElsewhereError when the node falls silent before the first token: its machine may be gone."""
        try:
            async with asyncio.timeout(None) as waiting:
                self._open.setdefault(node, {})[waiting] = request
                try:
                    yield
                finally:
                    del self._open[node][waiting]
                    if not self._open[node]:
                        del self._open[node]
        except TimeoutError:
            raise ElsewhereError from None

    def _give_up_on_silent(self, now: float) -> None:
        """As long as another node is heard: where none is, it is who tells of them that is gone."""
        if not any(self._router.is_up(node, now) for node in self._urls):
            return
        for node, entries in self._open.items():
            if self._router.is_silent(node, now):
                for waiting, request in entries.items():
                    if not request.begun and waiting.when() is None:
                        waiting.reschedule(asyncio.get_running_loop().time())

    async def _heard_before(self, until: float) -> bool:
        """Wait for the next word of any node; false where none is known, or it is too late."""
        left_s = until - time.monotonic()
        if not self._urls or left_s <= 0:
            return False
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), left_s)
        return True

    async def _attempts(self, request: Incoming) -> Attempts:
        asked = await self._wanted(request)
        fixed = self._fixed(request, asked)
        at_home = _is_at_home(request)
        repeatable = not at_home or request.method in _READING
        return Attempts(asked.ask, fixed, in_turn=at_home, repeatable=repeatable)

    def _fixed(self, request: Incoming, asked: Wanted) -> list[str] | None:
        """Nodes that alone can answer, because they hold what is asked for; None where any can."""
        held = asked.goes_on_from
        for prefix in _HELD:
            if request.path.startswith(prefix):
                held = request.path.removeprefix(prefix).split("/")[0]
        if held is not None and self._answers.get(held) in self._urls:
            return [self._answers[held]]
        if _is_at_home(request):
            return self._home()
        if request.method in _READING or asked.ask.model == _UNKNOWN:
            return sorted(self._home(), key=lambda node: not self._router.is_up(node, time.monotonic()))
        return self._home()[:1] if request.method != "POST" else None

    def _home(self) -> list[str]:
        """The node that has files, then others by hash."""
        return sorted(by_hash("home", self._urls), key=lambda node: node != self._keeper)

    async def _wanted(self, request: Incoming) -> Wanted:
        body, first = request.body.beginning, self._catalog.entries[0].name if self._catalog.entries else ""
        asked = await off_loop(len(body), lambda: wanted(body, default_model=first))
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


def _is_at_home(request: Incoming) -> bool:
    """Whether one node alone has what is asked for; a model that is deleted was made there."""
    is_deleted = request.method == "DELETE" and request.path.startswith("/v1/models/")
    return is_deleted or request.path.startswith(_AT_HOME)


async def _live(receive: Receive, send: Send) -> None:
    """There is nothing to start or to end."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def _incoming(scope: Scope, body: Body) -> Incoming:
    query = scope["query_string"]
    target = scope.get("raw_path", scope["path"].encode()).decode("ascii") + (f"?{query.decode()}" if query else "")
    dialect, request_id = dialect_of(scope["path"], scope["headers"]), scope["state"]["request_id"]
    return Incoming(
        scope["method"], target, scope["path"], list(scope["headers"]), body, request_id, dialect, scope["scheme"]
    )


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
