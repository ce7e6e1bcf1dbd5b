"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.output.chat import ChatStream, ChatWhole
from server.output.frame import Head, fingerprint
from server.output.shapes import ChatChunk, ChatCompletion
from server.output.splitters import splitters
from server.routes.answering import AnswerPlan, answer, with_defaults
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.services import new_id, served_headers
from server.schemas.chat import SURFACE, ChatRequest, parse_chat

if TYPE_CHECKING:
    from backends.messages import Ready

router = APIRouter(route_class=Described, tags=["answers"])

PARAMS = {
    "prompt": "messages",
    "n": "n",
    "template_kwargs": "chat_template_kwargs",
    "response_format": "response_format",
    "response_format.json_schema": "response_format.json_schema",
    "tools": "tools",
}


@router.post(SURFACE.path, responses=answers(ChatCompletion, stream=ChatChunk))
async def chat_completions(
    request: Request, app: App, chat: Annotated[ChatRequest, Depends(parsed(SURFACE, parse_chat))]
) -> Response:
    """Answer a conversation, streamed or whole; answers name the model itself, also where an alias was asked for."""
    model = app.model(chat.model)
    app.refuse_too_long(model, chat.text_bytes, param="messages")
    chat, chosen = await with_defaults(app, model, chat)
    answer_id, created = new_id("chatcmpl-"), int(time.time())

    def head(ready: Ready | None) -> Head:
        return Head(answer_id, created, model.name, fingerprint(model.name, ready))

    plan = AnswerPlan(
        jobs=[chat.job(answer_id)],
        choices_per_job=chat.n or 1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        streamed=bool(chat.stream),
        params=PARAMS,
        headers=served_headers(model, chat.ignored_by(model.ready)) | chosen,
        head=head,
        require=chat.require,
        new_stream=lambda head, ready, started: ChatStream(
            head,
            include_usage=chat.wants_usage,
            new_splitter=splitters(chat.functions, ready, started, only=chat.constraint),
        ),
        new_whole=lambda ready, started: ChatWhole(
            n=chat.n or 1, new_splitter=splitters(chat.functions, ready, started, only=chat.constraint)
        ),
    )
    return await answer(request, app, model, plan)
