"""A request's body at the edge, whole before a node is asked: in memory, and what is long of a form on the disk.

A node that cannot be reached is followed by another one, which is sent the same. Owns how slowly a body may come.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from server.door.forms import is_form
from server.door.http1 import ARRIVAL_BYTES, ARRIVAL_S, too_slow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.types import Receive, Scope

    from server.door.spool import Spool, SpoolWriter

BEGINNING_BYTES: Final = 2**20
"""Of a form, what stays in memory: its fields, as a rule."""
_PIECE_BYTES: Final = 2**18


@dataclass(frozen=True)
class Body:
    """What a client has sent."""

    beginning: bytes
    """All of it, unless there is a rest."""
    rest: Path | None = None
    rest_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """Of all of it."""
        return len(self.beginning) + self.rest_bytes

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        """All of it, for one request to a node."""
        return (self.beginning or None) if self.rest is None else self._pieces(self.rest)

    async def _pieces(self, rest: Path) -> AsyncIterator[bytes]:
        yield self.beginning
        with await asyncio.to_thread(rest.open, "rb") as file:
            while piece := await asyncio.to_thread(file.read, _PIECE_BYTES):
                yield piece


@asynccontextmanager
async def received(scope: Scope, receive: Receive, spool: Spool) -> AsyncIterator[Body]:
    """The whole body, as long as the context lasts. Raises ApiError 408 and 503, and ClientDisconnect."""
    beginning = bytearray()
    most_bytes = BEGINNING_BYTES if is_form(scope["headers"]) else None
    writer: SpoolWriter | None = None
    try:
        async with aclosing(_arriving(receive)) as pieces:
            async for piece in pieces:
                n_fit = len(piece) if most_bytes is None else max(0, most_bytes - len(beginning))
                beginning += piece[:n_fit]
                if rest := piece[n_fit:]:
                    writer = writer or spool.begin()
                    writer.take(len(rest))
                    await _written(writer, rest)
        if writer is None:
            yield Body(bytes(beginning))
        else:
            file = writer.finish(media_type="", name="")
            yield Body(bytes(beginning), Path(file.path), file.n_bytes)
    finally:
        if writer is not None:
            writer.remove()


async def _written(writer: SpoolWriter, data: bytes) -> None:
    """On a thread; a request that is cancelled waits for it: its file is closed next. Raises ApiError 503."""
    writing = asyncio.ensure_future(asyncio.to_thread(writer.write, data))
    try:
        await asyncio.shield(writing)
    finally:
        await asyncio.wait({writing})


async def _arriving(receive: Receive) -> AsyncGenerator[bytes]:
    """Its pieces. Raises ApiError 408 where they come too slowly, and ClientDisconnect."""
    more, n_new, until = True, 0, time.monotonic() + ARRIVAL_S
    while more:
        try:
            async with asyncio.timeout(until - time.monotonic()):
                message = await receive()
        except TimeoutError:
            raise too_slow() from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        n_new += len(piece)
        if n_new >= ARRIVAL_BYTES:
            n_new, until = 0, time.monotonic() + ARRIVAL_S
        yield piece
