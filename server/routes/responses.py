"""`POST /v1/responses`, and what is kept of it: get, delete, list the input; and the count of an input's tokens."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from server.errors import ApiError, clip
from server.history import Record
from server.output.compaction import Compaction, latest_words
from server.output.frame import Head, to_json
from server.output.items import Items
from server.output.responses import ResponseAnswer
from server.output.sorting import Sorter
from server.output.splitters import splitters
from server.routes.answering import Plan, answer
from server.routes.chat import PARAMS
from server.routes.defaults import with_defaults
from server.routes.query import flag, known_parameters
from server.routes.services import Services, new_id, served_headers, services
from server.routes.tokens import count_tokens
from server.schemas.body import off_loop, read_as
from server.schemas.items import wrapped
from server.schemas.response_fields import RENAMES
from server.schemas.responses import Asked, Draft, parse_compact, parse_response, summing_up, turns_of
from server.schemas.tools import skipped

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from backends.messages import Ready, Started

log = logging.getLogger("onecard.responses")

_MOST_LISTED = 100
_SHORTEST_SUMMARY, _LONGEST_SUMMARY = 64, 4096
"""Tokens; between them a quarter of the context."""
_INCLUDE = ("include", "include[]")
"""What OpenAI's clients send once for each thing they want to see as well."""


async def create_response(request: Request) -> Response:
    """Answer the items of a conversation, streamed or whole, and keep the answer for the next request."""
    app = services(request)
    asked = await _read(request, app)
    asked.check_results()
    chat = asked.chat
    entry = app.entry(chat.model)
    if kinds := skipped(chat.tools):
        log.info("tools_skipped id=%s kinds=%s", request.state.request_id, ",".join(kinds[:8]))
    app.refuse_too_long(entry, chat.text_bytes, param="input")
    chat, chosen = await with_defaults(app, entry, chat)
    asked = replace(asked, chat=chat)
    response_id = new_id("resp_")
    opening = asked.opening(response_id, entry.name, created=int(time.time()))
    domain = request.state.domain

    def keep(response: dict[str, Any]) -> None:
        if asked.is_stored:
            app.history.put(_record(domain, response, asked), time.monotonic())

    items = Items(new_id=new_id, envelope=wrapped if asked.wants_envelope else None)
    grown = ResponseAnswer(opening, items, now=time.time, on_done=keep)

    def begin(ready: Ready | None, started: Started | None) -> ResponseAnswer:
        return grown.begin(Sorter(splitters(chat.functions, ready, started)()))

    plan = Plan(
        jobs=[chat.job(response_id)],
        choices_per_job=1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        session=asked.own.prompt_cache_key or "",
        streamed=bool(chat.stream),
        params=PARAMS,
        headers=served_headers(entry, asked.ignored) | chosen,
        head=lambda _ready: Head(response_id, 0, entry.name, ""),
        require=chat.require,
        new_stream=lambda _head, ready, started: begin(ready, started),
        new_whole=begin,
        words=RENAMES.error,
        voice=grown,
    )
    return await answer(request, app, entry, plan)


async def compact_response(request: Request) -> Response:
    """Sum a conversation up into one item that stands for it in later requests."""
    app = services(request)
    asked = await _read(request, app, parse_compact)
    entry = app.entry(asked.chat.model)
    n_summary = min(_LONGEST_SUMMARY, max(_SHORTEST_SUMMARY, (app.context_limit(entry) or 0) // 4))
    chat = summing_up(asked, max_tokens=n_summary)
    app.refuse_too_long(entry, chat.text_bytes, param="input")
    head = Head(new_id("resp_"), int(time.time()), entry.name, "")
    words = latest_words(asked.turns)

    def begin(ready: Ready | None, started: Started | None) -> Compaction:
        return Compaction(Sorter(splitters([], ready, started)()), new_id("cmp_"), words)

    plan = Plan(
        jobs=[chat.job(head.id)],
        choices_per_job=1,
        priority=chat.priority or 0,
        keep_alive_s=chat.keep_alive,
        session=asked.own.prompt_cache_key or "",
        streamed=False,
        params=PARAMS,
        headers=served_headers(entry, asked.ignored),
        head=lambda _ready: head,
        require=chat.require,
        new_stream=None,
        new_whole=begin,
        words=RENAMES.error,
    )
    return await answer(request, app, entry, plan)


async def count_input_tokens(request: Request) -> Response:
    """How many tokens the input of such a request has."""
    app = services(request)
    asked = await _read(request, app)
    entry = app.entry(asked.chat.model)
    n_tokens = await count_tokens(request, app, entry, asked.chat.prompt(), params=RENAMES.params(PARAMS))
    body = to_json({"object": "response.input_tokens", "input_tokens": n_tokens})
    return Response(body, media_type="application/json", headers=served_headers(entry, asked.ignored))


async def get_response(request: Request) -> Response:
    """A stored response, whole."""
    known_parameters(request, "stream", "starting_after", "include_obfuscation", repeated=_INCLUDE)
    if flag(request, "stream"):
        raise ApiError(
            400, "Unsupported parameter: 'stream': a stored response comes whole.", param="stream", code="invalid_value"
        )
    return _json(_stored(request).response)


async def delete_response(request: Request) -> Response:
    """Forget a response."""
    record = _stored(request)
    services(request).history.delete(record.id, record.domain, time.monotonic())
    return _json(to_json({"id": record.id, "object": "response", "deleted": True}))


async def list_input_items(request: Request) -> Response:
    """The input items of a stored response, newest first unless `order=asc`; pages by `limit` and `after`."""
    known_parameters(request, "order", "limit", "after", repeated=_INCLUDE)
    items = json.loads(_stored(request).inputs)
    query = request.query_params
    if (order := query.get("order", "desc")) not in ("asc", "desc"):
        raise ApiError(400, "Invalid 'order': 'asc' or 'desc' is expected.", param="order", code="invalid_value")
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdecimal() and len(limit) < 4 and 1 <= int(limit) <= _MOST_LISTED):
        raise ApiError(
            400, f"Invalid 'limit': a number from 1 to {_MOST_LISTED} is expected.", param="limit", code="invalid_value"
        )
    listed = items if order == "asc" else items[::-1]
    if (after := query.get("after")) is not None:
        places = [i for i, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise ApiError(400, f"Item with id '{clip(after)}' not found.", param="after", code="item_not_found")
        listed = listed[places[0] + 1 :]
    page = listed[: int(limit)]
    ids = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
    return _json(to_json({"object": "list", "data": page, **ids, "has_more": len(listed) > len(page)}))


def _stored(request: Request) -> Record:
    """The response the path names. Raises ApiError 404."""
    response_id = request.path_params["id"]
    record = services(request).history.get(response_id, request.state.domain, time.monotonic())
    if record is None:
        raise ApiError(404, f"Response with id '{clip(response_id)}' not found.", param="id", code="not_found")
    return record


async def _read(request: Request, app: Services, parse: Callable[[dict[str, Any]], Draft] = parse_response) -> Asked:
    """The checked request, with what it refers to. Raises ApiError."""
    draft = await read_as(request, parse)
    before, now, domain = None, time.monotonic(), request.state.domain
    if (previous := draft.own.previous_response_id) is not None:
        record = app.history.get(previous, domain, now)
        if record is None:
            raise ApiError(
                400,
                f"Previous response with id '{clip(previous)}' not found. Responses are kept in memory for a while; "
                "send the whole conversation as 'input' instead.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        before = record.turns
    holders = {item_id: app.history.holder(item_id, domain, now) for item_id in draft.references}
    items = {item_id: _item(record, item_id) for item_id, record in holders.items() if record is not None}
    n_bytes = len(await request.body()) + len(before or b"")
    return await off_loop(n_bytes, lambda: draft.complete(before=before, items=items))


def _item(record: Record, item_id: str) -> dict[str, Any]:
    items: list[dict[str, Any]] = [*json.loads(record.inputs), *json.loads(record.response)["output"]]
    return next(item for item in items if item["id"] == item_id)


def _record(domain: str, response: dict[str, Any], asked: Asked) -> Record:
    inputs = asked.inputs(new_id)
    return Record(
        id=response["id"],
        domain=domain,
        response=to_json(response),
        inputs=to_json(inputs),
        turns=to_json([*asked.turns, *turns_of(response["output"])]),
        item_ids=tuple(item["id"] for item in [*inputs, *response["output"]]),
    )


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
