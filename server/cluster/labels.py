"""Headers of an edge's answers behind the proxy of Ray Serve, which adds its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SERVES_OWN: Final = frozenset((b"x-request-id", b"server"))


def labelled_by_serve(application: ASGIApp) -> ASGIApp:
    """Without what Serve's proxy puts on every answer: a server's name and the request's id, which is ours, too."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def pass_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in _SERVES_OWN]
                message = {**message, "headers": kept}
            await send(message)

        await application(scope, receive, pass_on)

    return answer
