"""The socket that is served on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from server.cli import serve


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_no_part_of_an_answer_waits_for_an_acknowledgement(host):
    listener = serve._open(serve._target(host, 0))
    accepted: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)

    async with await asyncio.get_running_loop().create_server(Connection, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        transport = await accepted
        assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        transport.close()
        writer.close()
