"""An edge's answers behind the proxy of Ray Serve, which adds headers and cuts off bodies that nothing reads."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from server.door.http1 import ARRIVAL_S

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOO_LARGE: Final = 413
_SERVES_OWN: Final = frozenset((b"x-request-id", b"server"))


def labelled_by_serve(application: ASGIApp) -> ASGIApp:
    """Without what Serve's proxy puts on every answer: a server's name and the request's id, which is ours, too.

    A body that is too large is read to its end before its 413, unless that closes the connection: the client is still
    sending it, and would see a reset.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] == _TOO_LARGE and (b"connection", b"close") not in message["headers"]:
                    await _swallow(receive)
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in _SERVES_OWN]
                message = {**message, "headers": kept}
            await send(message)

        await application(scope, receive, pass_on)

    return answer


async def _swallow(receive: Receive) -> None:
    """Read what is left of a body, as long as it comes."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ARRIVAL_S):
            while (await receive()).get("more_body", False):
                pass
