"""`POST /api/chat` and `/api/generate`, for Home Assistant, JetBrains and what else speaks Ollama's API."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from backends.messages import TextPrompt, Tokenize, Tokenized
from server.output.frame import Head
from server.output.ollama import NDJSON, OllamaAnswer, OllamaClock, OllamaLines, Shape, nothing_said
from server.output.ollama_shapes import OllamaChat, OllamaText
from server.output.sorting import Sorter
from server.output.splitters import splitters
from server.routes.answering import AnswerPlan, answer, with_defaults
from server.routes.chat import PARAMS
from server.routes.completions import PARAMS as TEXT_PARAMS
from server.routes.dependencies import App, parsed, require_near_or_key, require_operator
from server.routes.described import Described, answers
from server.routes.models import performed
from server.routes.running import Run, while_connected
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.single import single
from server.schemas.ollama import (
    CHAT,
    GENERATE,
    OllamaRequest,
    job_of,
    parse_ollama_chat,
    parse_ollama_generate,
)
from server.schemas.ollama_fields import is_unload

if TYPE_CHECKING:
    from backends.messages import GeneratorFacts, Ready, Started

_LATEST = ":latest"


async def near(request: Request, app: App) -> None:
    """Who may speak this API, which knows no keys: with keys who has one, without any only this machine."""
    require_near_or_key(request, app, "Speaking Ollama's API")


router = APIRouter(route_class=Described, tags=["Ollama"], dependencies=[Depends(near)])


@router.post(CHAT.path, responses=answers(OllamaChat, stream=OllamaChat, lines=NDJSON))
async def ollama_chat(
    request: Request, app: App, asked: Annotated[OllamaRequest, Depends(parsed(CHAT, parse_ollama_chat))]
) -> Response:
    """Answer a conversation, as lines or whole."""
    return await _answered(request, app, asked, "chat")


@router.post(GENERATE.path, responses=answers(OllamaText, stream=OllamaText, lines=NDJSON))
async def ollama_generate(
    request: Request, app: App, asked: Annotated[OllamaRequest, Depends(parsed(GENERATE, parse_ollama_generate))]
) -> Response:
    """Answer one prompt, as lines or whole."""
    return await _answered(request, app, asked, "generate")


def called(app: Services, name: str | None) -> ModelFacts:
    """The model a client names; Ollama's put `:latest` behind what has no tag. Raises ApiError."""
    if name is not None and app.catalog.resolve(name) is None:
        name = without_latest(name)
    return app.model(name)


def without_latest(name: str) -> str:
    """The name without the tag that Ollama's clients put behind one that has none."""
    return name.removesuffix(_LATEST)


def wished(request: Request, keep_alive_s: float | None) -> tuple[float | None, list[str]]:
    """How long the model shall stay, and what is ignored of the wish.

    Ollama's clients say it with every request, so a key that may not is told in a header and served.
    """
    may = keep_alive_s is None or request.state.admin
    return (keep_alive_s, []) if may else (None, ["keep_alive"])


async def load_by_job(request: Request, app: Services, model: ModelFacts, keep_alive_s: float | None) -> None:
    """Have the model loaded as for any job, by one that reads nothing. Raises ApiError."""
    job = Tokenize(id=new_id("load-"), prompt=TextPrompt(text=""))
    run = Run([app.pool.submit(model.entry, job, keep_alive_s=keep_alive_s)], 1, {"prompt": "model"})
    await single(request, run, Tokenized)


async def _answered(request: Request, app: Services, asked: OllamaRequest, shape: Shape) -> Response:
    clock = OllamaClock(time.monotonic, time.monotonic())
    model = called(app, asked.model)
    keep_alive_s, unserved = wished(request, asked.own.keep_alive)
    if asked.meant is None:
        headers = served_headers(model, [*asked.ignored, *unserved])
        return await _moved(request, app, model, asked, shape, headers)
    param = "messages" if shape == "chat" else "prompt"
    app.refuse_too_long(model, asked.text_bytes, param=param)
    meant, chosen = await with_defaults(app, model, asked.meant)
    head = Head(new_id("ollama-"), 0, model.name, "")
    ignored = [*asked.ignored, *asked.left_out_by(model.ready), *unserved]

    def require(facts: GeneratorFacts) -> None:
        if asked.chat is not None:
            asked.chat.require(facts)

    def begin(ready: Ready | None, started: Started | None) -> OllamaAnswer:
        new = splitters(asked.functions, ready, started, only=asked.constraint)
        return OllamaAnswer(model.name, shape, Sorter(new() if asked.chat is not None else None), clock)

    plan = AnswerPlan(
        jobs=[job_of(meant, head.id)],
        choices_per_job=1,
        priority=meant.priority or 0,
        keep_alive_s=keep_alive_s,
        streamed=asked.streamed,
        params=asked.names.params(PARAMS if asked.chat is not None else TEXT_PARAMS),
        headers=served_headers(model, ignored) | chosen,
        head=lambda _ready: head,
        require=require,
        new_stream=lambda _head, ready, started: begin(ready, started),
        new_whole=begin,
        voice=OllamaLines(model.name, shape),
        media_type=NDJSON,
        on_submit=clock.submitted,
        words=asked.names.error,
    )
    return await answer(request, app, model, plan)


async def _moved(
    request: Request, app: Services, model: ModelFacts, asked: OllamaRequest, shape: Shape, headers: dict[str, str]
) -> Response:
    """A request that says nothing: the model comes, or leaves where it is to stay for no time."""
    if is_unload(asked.own.keep_alive):
        require_operator(request, app, "Unloading a model", "Unloading a model")
        await while_connected(request, performed(app.pool.unload(model.entry.name)))
        body = nothing_said(model.name, shape, "unload")
    else:
        await load_by_job(request, app, model, wished(request, asked.own.keep_alive)[0])
        body = nothing_said(model.name, shape, "load")
    return Response(body, media_type="application/json", headers=headers)
