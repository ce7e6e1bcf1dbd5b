"""The event-stream response: encoded bytes, a keep-alive comment, a limit on slow readers, no job left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import anyio._backends._asyncio  # noqa: F401 - else read at the first stream, when no file may be left to open it
from sse_starlette.sse import EventSourceResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.types import Message, Receive, Scope, Send

    from server.routes.running import Run

SSE: Final = "text/event-stream"
SEND_TIMEOUT_S = 30.0
"""A reader that takes nothing for this long is cut off and its jobs are cancelled."""


class StreamedAnswer(EventSourceResponse):
    """One streamed answer; whatever ends it ends its jobs."""

    def __init__(
        self,
        body: AsyncIterator[bytes],
        run: Run,
        *,
        headers: Mapping[str, str],
        keepalive_s: float,
        keep_alive: Callable[[], bytes],
        media_type: str = SSE,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        super().__init__(
            body,
            headers=headers,
            media_type=media_type,
            sep="\n",
            ping=keepalive_s,
            ping_message_factory=keep_alive,  # type: ignore[arg-type]  # bytes go out as they are
            send_timeout=send_timeout_s,
            client_close_handler_callable=self._on_hang_up,
        )
        self._run = run
        self._send_timeout_s = send_timeout_s
        self._deadline = asyncio.timeout(None)
        self._loop = asyncio.get_running_loop()
        self._sending_since: float | None = None
        """When the oldest send that has not ended began, on the loop's clock."""

    async def _stream_response(self, send: Send) -> None:
        async with self._deadline:
            self._watch = self._loop.call_later(self._send_timeout_s, self._look)
            try:
                await super()._stream_response(send)
            finally:
                self._watch.cancel()

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Notes when it began: `_look` cuts it off. The library's cancel scope costs as much as the send itself."""
        if self._deadline.expired():  # a keep-alive beside a send that is being given up
            raise TimeoutError
        if self._sending_since is None:
            self._sending_since = self._loop.time()
        await send(message)
        self._sending_since = None

    def _look(self) -> None:
        """End the answer where a send takes too long; look again when the one at hand would."""
        now = self._loop.time()
        ends_at = (now if self._sending_since is None else self._sending_since) + self._send_timeout_s
        if ends_at <= now:
            self._deadline.reschedule(now)
        else:
            self._watch = self._loop.call_at(ends_at, self._look)

    async def _on_hang_up(self, _message: Message) -> None:
        self._run.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the jobs are cancelled on every way out, also where the body never began."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._run.cancel()
