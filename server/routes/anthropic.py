"""`POST /v1/messages` and `/v1/messages/count_tokens`, for Claude Code and Anthropic's SDKs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.history import Record
from server.output.anthropic import MessageAnswer, Pings
from server.output.anthropic_objects import Message, TokenCount
from server.output.frame import Head, to_json
from server.output.shapes import MessageEvent
from server.output.sorting import Sorter
from server.output.splitters import splitters
from server.routes.answering import AnswerPlan, answer, with_defaults
from server.routes.chat import PARAMS
from server.routes.dependencies import App, JsonBody, services
from server.routes.described import Described, answers
from server.routes.services import new_id, served_headers
from server.routes.tokens import count_tokens
from server.schemas.anthropic import COUNT, SURFACE, AskedMessage, continued_from, parse_count, parse_message
from server.schemas.body import off_loop, read_as
from server.schemas.renames import TO_MESSAGES
from server.schemas.threads import Held, kept, not_found
from server.schemas.tools import skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import GeneratorFacts, Ready, Started
    from server.output.anthropic_objects import Block
    from server.schemas.surface import Surface

router = APIRouter(route_class=Described, tags=["answers"])
log = logging.getLogger("onecard.anthropic")


def _body(surface: Surface, parse: Callable[[dict[str, Any], Held | None], AskedMessage]) -> JsonBody[AskedMessage]:
    """The checked request, after the thread that it continues."""

    async def read(request: Request) -> AskedMessage:
        data = await read_as(request, lambda whole: whole)
        held = None
        if (previous := continued_from(data)) is not None:
            history = (await services(request)).history
            record = history.get(previous, request.state.domain, time.monotonic(), kind="thread")
            if record is None:
                raise not_found(previous)
            held = record.turns
        n_bytes = len(await request.body()) + len(held or b"")
        return await off_loop(n_bytes, lambda: parse(data, None if held is None else Held.read(held)))

    return JsonBody(surface, read)


@router.post(SURFACE.path, responses=answers(Message, stream=MessageEvent))
async def create_message(
    request: Request, app: App, asked: Annotated[AskedMessage, Depends(_body(SURFACE, parse_message))]
) -> Response:
    """Answer a conversation, streamed or whole."""
    chat = asked.chat
    model = app.model(chat.model)
    if kinds := skipped(chat.tools):
        log.info("tools_skipped id=%s kinds=%s", request.state.request_id, ",".join(kinds[:8]))
    app.refuse_too_long(model, chat.text_bytes, param="messages")
    chat, chosen = await with_defaults(app, model, chat)
    head = Head(new_id("msg_"), 0, model.name, "")

    def require(facts: GeneratorFacts) -> None:
        # Wanting to see thoughts is no reason to refuse a model that has none.
        chat.require(msgspec.structs.replace(facts, reasoning_marks=facts.reasoning_marks or ("", "")))

    domain = request.state.domain

    def keep(content: list[Block]) -> None:
        if asked.is_held:
            record = Record(head.id, domain, b"", b"", kept(asked.body, content), kind="thread")
            app.history.put(record, time.monotonic())

    def begin(ready: Ready | None, started: Started | None) -> MessageAnswer:
        return MessageAnswer(
            head, Sorter(splitters(chat.functions, ready, started, only=chat.constraint)()), started, on_done=keep
        )

    plan = AnswerPlan(
        jobs=[asked.job(head.id, chat)],
        choices_per_job=1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        streamed=bool(chat.stream),
        params=PARAMS,
        headers=served_headers(model, asked.ignored) | chosen,
        head=lambda _ready: head,
        require=require,
        new_stream=lambda _head, ready, started: begin(ready, started),
        new_whole=begin,
        words=TO_MESSAGES.error,
        voice=Pings(request.state.request_id),
    )
    return await answer(request, app, model, plan)


@router.post(COUNT.path, responses=answers(TokenCount))
async def count_message_tokens(
    request: Request, app: App, asked: Annotated[AskedMessage, Depends(_body(COUNT, parse_count))]
) -> Response:
    """How many tokens a conversation has."""
    model = app.model(asked.chat.model)
    n_tokens = await count_tokens(request, app, model, asked.chat.prompt(), params=TO_MESSAGES.params(PARAMS))
    body = to_json(TokenCount(input_tokens=n_tokens))
    return Response(body, media_type="application/json", headers=served_headers(model, asked.ignored))
