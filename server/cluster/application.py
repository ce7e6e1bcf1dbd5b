"""The edge behind the gate: what a server of ASGI runs at the address of a cluster, whatever starts it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

import httpx2

from server.accounts.book import Accounts
from server.cluster.edge import Edge
from server.door.gate import Gate
from server.door.rules import DoorRules
from server.door.spool import Spool, spool_folder
from server.routes.files import PATH as FILES_PATH
from server.routes.files import UPLOAD_BYTES
from server.settings.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from starlette.types import Receive, Scope, Send

    from server.cluster.notices import Notice
    from server.settings.config import Settings

HEAR_EVERY_S: Final = 0.5
_CONNECT_S: Final = 2.0
_IDLE_S: Final = 2.0
"""A connection is used again only within it: a node closes one after 5 s, and one request would meet that."""
_LOG = logging.getLogger("onecard.cluster")


class Application:
    """ASGI. `source` tells of all nodes; it is asked from the first request on, as long as the event loop lives."""

    def __init__(
        self,
        settings: Settings,
        source: Callable[[], Awaitable[Sequence[Notice]]],
        *,
        key: str | None,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256, keepalive_expiry=_IDLE_S)
        timeout = httpx2.Timeout(None, connect=_CONNECT_S)
        client = httpx2.AsyncClient(limits=limits, timeout=timeout, trust_env=False)
        self._source = source
        spool = Spool(settings.server.max_upload_bytes, spool_folder)
        self._edge = Edge(Catalog(settings), client, spool=spool, key=key, metrics=settings.metrics.enabled)
        rules = DoorRules(settings, Accounts((), time.monotonic))
        self._gate = Gate(self._edge, rules=rules, draining=draining, uploads={FILES_PATH: UPLOAD_BYTES})
        self._hearing: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request through the gate."""
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear())
        if not self._heard.is_set() and scope["type"] == "http":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._heard.wait(), _CONNECT_S)
        await self._gate(scope, receive, send)

    async def _hear(self) -> None:
        """Ask for all nodes again and again; while none tells, what was heard last grows old."""
        while True:
            try:
                self._edge.heard(await self._source())
                self._heard.set()
            except Exception:
                _LOG.exception("cluster_unheard")
            await asyncio.sleep(HEAR_EVERY_S)
