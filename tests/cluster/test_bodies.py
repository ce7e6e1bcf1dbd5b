"""What a client sends is whole before a node is asked, and of a long form the edge holds the beginning only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.cluster.bodies import BEGINNING_BYTES, Body, received
from server.cluster.edge import Edge
from server.cluster.facts import HeldModel
from server.cluster.notices import Notice
from server.door.spool import Spool
from server.errors import ApiError
from server.settings.catalog import Catalog
from server.settings.config import Settings
from tests.http.conftest import settings

FORM = [(b"content-type", b"multipart/form-data; boundary=a")]
PIECE = bytes(range(256)) * 2**10
PIECES = [PIECE] * 12
SCOPE: dict[str, Any] = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "scheme": "http",
    "headers": FORM, "state": {"request_id": "req_1"}}  # fmt: skip


def sending(pieces: list[bytes]) -> Any:
    """The client's side, which stays connected."""
    left = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    left[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    return receive


def spooled(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


async def read(body: Body) -> bytes:
    content = body.content()
    if content is None or isinstance(content, bytes):
        return content or b""
    return b"".join([piece async for piece in content])


@pytest.mark.parametrize(("headers", "in_memory"), [(FORM, BEGINNING_BYTES), ([], len(PIECE) * len(PIECES))])
async def test_a_long_form_is_on_the_disk_until_its_request_has_ended(tmp_path, headers, in_memory):
    spool = Spool(2**30, lambda: tmp_path)

    async with received({**SCOPE, "headers": headers}, sending(PIECES), spool) as body:
        assert (len(body.beginning), body.n_bytes) == (in_memory, len(PIECE) * len(PIECES))
        assert await read(body) == await read(body) == b"".join(PIECES)
        assert len(spooled(tmp_path)) == (headers == FORM)

    assert (spooled(tmp_path), spool.used_bytes) == ([], 0)


async def test_forms_together_take_no_more_than_the_operator_gives_them(tmp_path):
    spool = Spool(2**20, lambda: tmp_path)

    with pytest.raises(ApiError, match="max_upload_bytes") as refused:
        async with received(SCOPE, sending(PIECES), spool):
            pass

    assert (refused.value.status, refused.value.code) == (503, "uploads_full")
    assert (spooled(tmp_path), spool.used_bytes) == ([], 0)


async def test_a_request_that_is_cancelled_while_its_form_arrives_leaves_nothing(tmp_path):
    spool, first = Spool(2**30, lambda: tmp_path), sending(PIECES[:-1])
    stalled = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if stalled.is_set():
            await asyncio.Event().wait()
        message: dict[str, Any] = await first()
        if not message["more_body"]:
            stalled.set()
        return {**message, "more_body": True}

    async def ask() -> None:
        async with received(SCOPE, receive, spool):
            raise AssertionError("it is whole")

    asking = asyncio.create_task(ask())
    await stalled.wait()
    asking.cancel()

    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (spooled(tmp_path), spool.used_bytes) == ([], 0)


async def test_a_file_is_sent_whole_again_where_its_node_was_not_reached(tmp_path, canary_path):
    asked: list[tuple[bytes, str]] = []
    sent: list[Any] = []

    async def node(request: httpx2.Request) -> httpx2.Response:
        asked.append((await request.aread(), request.headers["content-length"]))
        if len(asked) == 1:
            asyncio.get_running_loop().call_later(0, hear, "2")
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json={"id": "file-1"})

    client = httpx2.AsyncClient(transport=httpx2.MockTransport(node))
    catalog = Catalog(Settings.model_validate(settings(canary_path)))
    edge = Edge(catalog, client, spool=Spool(2**30, lambda: tmp_path), key=None)

    def hear(life: str) -> None:
        """The node has begun this life of its server."""
        edge.heard([Notice("a", "http://a", life, 2**30, {"fake": HeldModel("ready")}, 0.0)])

    hear("1")

    async def send(message: Any) -> None:
        sent.append(message)

    await edge({**SCOPE}, sending(PIECES), send)

    whole = b"".join(PIECES)
    assert asked == [(whole, str(len(whole)))] * 2
    assert sent[0]["status"] == 200
    assert spooled(tmp_path) == []
