"""`POST /v1/responses`, and what is kept of it: get, delete, list the input; and the count of an input's tokens."""

from __future__ import annotations

import json
import logging
import time
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from backends.registry import KINDS, named
from server.errors import ApiError, clip
from server.history import Record
from server.output.compaction import Compaction, latest_words
from server.output.frame import Head, to_json
from server.output.items import Items
from server.output.response_objects import CompactedResponse, ResponseObject
from server.output.responses import ResponseAnswer
from server.output.shapes import DeletedResponse, InputTokens, ItemList, ResponseEvent
from server.output.sorting import Sorter
from server.output.splitters import splitters
from server.routes.answering import AnswerPlan, answer, with_defaults
from server.routes.chat import PARAMS
from server.routes.dependencies import App, JsonBody, StrictQuery, Whole, Word, services
from server.routes.described import Described, answers
from server.routes.services import Services, new_id, served_headers
from server.routes.tokens import count_tokens
from server.schemas.body import off_loop, read_as
from server.schemas.hosted import Wishes
from server.schemas.items import wrapped
from server.schemas.parts import as_sent
from server.schemas.problems import problem
from server.schemas.renames import TO_RESPONSES
from server.schemas.response_fields import COMPACT, COUNT, SURFACE
from server.schemas.responses import (
    AskedResponse,
    Draft,
    parse_compact,
    parse_response,
    summing_up,
    turns_of,
)
from server.schemas.tools import skipped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from backends.messages import Ready, Started
    from server.schemas.surface import Surface

router = APIRouter(route_class=Described, tags=["answers"])
log = logging.getLogger("onecard.responses")

_SHORTEST_SUMMARY, _LONGEST_SUMMARY = 64, 4096
"""Tokens; between them a quarter of the context."""


def _body(surface: Surface, parse: Callable[[dict[str, Any]], Draft]) -> JsonBody[AskedResponse]:
    """The checked request, with what it refers to."""

    async def read(request: Request) -> AskedResponse:
        draft = await read_as(request, parse)
        history = (await services(request)).history
        before, now, domain = None, time.monotonic(), request.state.domain
        if (previous := draft.own.previous_response_id) is not None:
            record = history.get(previous, domain, now)
            if record is None:
                raise _not_kept(previous)
            before = record.turns
        holders = {item_id: history.holder(item_id, domain, now) for item_id in draft.references}
        items = {item_id: _item(record, item_id) for item_id, record in holders.items() if record is not None}
        n_bytes = len(await request.body()) + len(before or b"")
        hosted = _hosted(await services(request), draft.own.tools)
        return await off_loop(n_bytes, lambda: draft.complete(before=before, items=items, hosted=hosted))

    return JsonBody(surface, read)


def _hosted(app: Services, tools: list[Any] | None) -> Wishes:
    """The tools that are wanted and that a model here can run. Raises ApiError 400 or 404."""
    known = {kind.capability: kind.tool for kind in KINDS.values() if kind.tool}
    found: Wishes = {}
    for i, tool in enumerate(tools or []):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(kind, str) or kind not in known:
            continue
        try:
            wish = named(known[kind]).wished(app, tool)
        except ApiError as error:
            error.param = f"tools[{i}].{error.param or 'model'}"  # a model that is not there is told without one
            raise
        if wish is not None:
            found[wish.name] = wish
    return found


@router.post(SURFACE.path, responses=answers(ResponseObject, stream=ResponseEvent))
async def create_response(
    request: Request, app: App, asked: Annotated[AskedResponse, Depends(_body(SURFACE, parse_response))]
) -> Response:
    """Answer the items of a conversation, streamed or whole, and keep the answer for the next request."""
    asked.check_results()
    chat = asked.chat
    model = app.model(chat.model)
    if kinds := skipped(chat.tools):
        log.info("tools_skipped id=%s kinds=%s", request.state.request_id, ",".join(kinds[:8]))
    app.refuse_too_long(model, chat.text_bytes, param="input")
    chat, chosen = await with_defaults(app, model, chat)
    asked = replace(asked, chat=chat)
    response_id = new_id("resp_")
    opening = asked.opening(response_id, model.name, created=int(time.time()))
    domain = request.state.domain

    def keep(response: dict[str, Any]) -> None:
        if asked.is_stored:
            app.history.put(_record(domain, response, asked), time.monotonic())

    items = Items(new_id=new_id, envelope=wrapped if asked.wants_envelope else None, hosted=asked.hosted)
    grown = ResponseAnswer(opening, items, now=time.time, on_done=keep)

    def begin(ready: Ready | None, started: Started | None) -> ResponseAnswer:
        return grown.begin(Sorter(splitters(chat.functions, ready, started, only=chat.constraint)()))

    async def run_tools() -> AsyncGenerator[bytes]:
        yield grown.closed()
        for call in items.waiting:
            async with aclosing(asked.hosted[call.name].run(call)) as changes:
                async for change in changes:
                    yield grown.more(change)

    plan = AnswerPlan(
        jobs=[chat.job(response_id)],
        choices_per_job=1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        session=asked.own.prompt_cache_key or "",
        streamed=bool(chat.stream),
        params=PARAMS,
        headers=served_headers(model, asked.ignored) | chosen,
        head=lambda _ready: Head(response_id, 0, model.name, ""),
        require=chat.require,
        new_stream=lambda _head, ready, started: begin(ready, started),
        new_whole=begin,
        words=TO_RESPONSES.error,
        voice=grown,
        afterwards=run_tools if asked.hosted else None,
    )
    return await answer(request, app, model, plan)


@router.post(COMPACT.path, responses=answers(CompactedResponse))
async def compact_response(
    request: Request, app: App, asked: Annotated[AskedResponse, Depends(_body(COMPACT, parse_compact))]
) -> Response:
    """Sum a conversation up into one item that stands for it in later requests."""
    model = app.model(asked.chat.model)
    n_summary = min(_LONGEST_SUMMARY, max(_SHORTEST_SUMMARY, (model.context_limit or 0) // 4))
    chat = summing_up(asked, max_tokens=n_summary)
    app.refuse_too_long(model, chat.text_bytes, param="input")
    head = Head(new_id("resp_"), int(time.time()), model.name, "")
    words = latest_words(asked.turns)

    def begin(ready: Ready | None, started: Started | None) -> Compaction:
        return Compaction(Sorter(splitters([], ready, started)()), new_id("cmp_"), words)

    plan = AnswerPlan(
        jobs=[chat.job(head.id)],
        choices_per_job=1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        session=asked.own.prompt_cache_key or "",
        streamed=False,
        params=PARAMS,
        headers=served_headers(model, asked.ignored),
        head=lambda _ready: head,
        require=chat.require,
        new_stream=None,
        new_whole=begin,
        words=TO_RESPONSES.error,
    )
    return await answer(request, app, model, plan)


@router.post(COUNT.path, responses=answers(InputTokens))
async def count_input_tokens(
    request: Request, app: App, asked: Annotated[AskedResponse, Depends(_body(COUNT, parse_response))]
) -> Response:
    """How many tokens the input of such a request has."""
    model = app.model(asked.chat.model)
    n_tokens = await count_tokens(request, app, model, asked.chat.prompt(), params=TO_RESPONSES.params(PARAMS))
    body = to_json({"object": "response.input_tokens", "input_tokens": n_tokens})
    return Response(body, media_type="application/json", headers=served_headers(model, asked.ignored))


class IncludeQuery(BaseModel):
    """What OpenAI's clients send once for each thing they want to see as well."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
    include: list[str] = []
    includes: Annotated[list[str], Field(alias="include[]")] = []


def _whole(stream: str) -> str:
    if stream == "true":
        raise problem("invalid_value", "Unsupported parameter: '{param}': a stored response comes whole.")
    return stream


class ResponseQuery(IncludeQuery):
    """How a stored response is given; the SDK sends all of these."""

    stream: Annotated[str, Word(("true", "false"), "'true' or 'false'"), AfterValidator(_whole)] = "false"
    starting_after: str | None = None
    include_obfuscation: str | None = None


class ItemsQuery(IncludeQuery):
    """Which items, in which order."""

    order: Annotated[str, Word(("asc", "desc"), "'asc' or 'desc'")] = "desc"
    limit: Annotated[int, Whole(1, 100)] = 20
    after: str | None = None


async def _stored(request: Request, app: App) -> Record:
    """The response the path names. Raises ApiError 404."""
    response_id = request.path_params["id"]
    record = app.history.get(response_id, request.state.domain, time.monotonic())
    if record is None:
        raise ApiError(404, f"Response with id '{clip(response_id)}' not found.", param="id", code="not_found")
    return record


Stored = Annotated[Record, Depends(_stored)]


@router.get("/v1/responses/{id}", responses=answers(ResponseObject))
async def get_response(
    _query: Annotated[ResponseQuery, Depends(StrictQuery(ResponseQuery))], record: Stored
) -> Response:
    """A stored response, whole."""
    return _json(record.response)


@router.delete("/v1/responses/{id}", responses=answers(DeletedResponse))
async def delete_response(app: App, record: Stored) -> Response:
    """Forget a stored response."""
    app.history.delete(record.id, record.domain, time.monotonic())
    return _json(to_json({"id": record.id, "object": "response", "deleted": True}))


@router.get("/v1/responses/{id}/input_items", responses=answers(ItemList))
async def list_input_items(query: Annotated[ItemsQuery, Depends(StrictQuery(ItemsQuery))], record: Stored) -> Response:
    """The input items of a stored response, newest first unless `order=asc`; pages by `limit` and `after`."""
    items = json.loads(record.inputs)
    listed = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        places = [i for i, item in enumerate(listed) if item["id"] == query.after]
        if not places:
            raise ApiError(400, f"Item with id '{clip(query.after)}' not found.", param="after", code="item_not_found")
        listed = listed[places[0] + 1 :]
    page = listed[: query.limit]
    ids = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return _json(to_json({"object": "list", "data": page, **ids, "has_more": len(listed) > len(page)}))


def _not_kept(previous: str) -> ApiError:
    return ApiError(
        400,
        f"Previous response with id '{clip(previous)}' not found. Responses are kept in memory for a while; "
        "send the whole conversation as 'input' instead.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _item(record: Record, item_id: str) -> dict[str, Any]:
    items: list[dict[str, Any]] = [*json.loads(record.inputs), *json.loads(record.response)["output"]]
    return next(item for item in items if item["id"] == item_id)


def _record(domain: str, response: dict[str, Any], asked: AskedResponse) -> Record:
    inputs = asked.inputs(new_id)
    return Record(
        id=response["id"],
        domain=domain,
        response=to_json(response),
        inputs=to_json(inputs),
        turns=to_json(as_sent([*asked.turns, *turns_of(response["output"])])),
        item_ids=tuple(item["id"] for item in [*inputs, *response["output"]]),
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
