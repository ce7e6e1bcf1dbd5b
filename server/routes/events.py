"""`GET /v1/events`: every state change and decision as a server-sent event. Reading it loads and keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from server.errors import ApiError
from server.output.frame import to_json
from server.pool.events import KEPT, Events, Happening, Subscription, TooManyReadersError
from server.routes.dependencies import App, StrictQuery, Whole
from server.routes.described import Described, answers
from server.routes.sse import SEND_TIMEOUT_S, SSE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

router = APIRouter(route_class=Described, tags=["server"])


class EventsQuery(BaseModel):
    """How many of the last events come first."""

    model_config = ConfigDict(extra="forbid")
    last: Annotated[int, Whole(0, KEPT)] = 0


@router.get("/v1/events", responses=answers(Happening, media=SSE))
async def events(app: App, query: Annotated[EventsQuery, Depends(StrictQuery(EventsQuery))]) -> Response:
    """Every decision with its reason, as events.

    What happens from now on, after the `last` that happened, until the client hangs up or the server has stopped.
    """
    try:
        reader = app.events.subscribe(last=query.last)
    except TooManyReadersError:
        raise ApiError(429, "Too many clients read the events.", type="requests", code="too_many_readers") from None
    return _Feed(app.events, reader, keepalive_s=app.settings.server.sse_keepalive_s)


class _Feed(EventSourceResponse):
    """One reader's stream; on every way out it is a reader no more."""

    def __init__(self, events: Events, reader: Subscription, *, keepalive_s: float) -> None:
        super().__init__(
            _frames(reader),
            sep="\n",
            ping=keepalive_s,
            ping_message_factory=lambda: ServerSentEvent(comment="keep-alive", sep="\n"),
            send_timeout=SEND_TIMEOUT_S,
        )
        self._events = events
        self._reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.leave(self._reader)


async def _frames(reader: Subscription) -> AsyncIterator[bytes]:
    yield b": listening\n\n"
    async for happening in reader:
        yield b"data: " + to_json(happening) + b"\n\n"
