"""A route that describes itself in `/openapi.json`: its body and its query by what reads them, its answers by type."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Final, get_args

from fastapi.routing import APIRoute
from starlette.routing import Match, Route, request_response

from server.output.shapes import Error
from server.routes.dependencies import JsonBody, StrictQuery
from server.routes.lean import lean_handler
from server.routes.sse import SSE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from starlette.types import Receive, Scope, Send

    from server.schemas.surface import Surface

SCHEMAS = "#/components/schemas/"
JSON: Final = "application/json"
_PROBLEM = {"description": "What went wrong", "content": {JSON: {"schema": Error}}}


def answers(kind: Any, *, stream: Any = None, media: str = JSON, lines: str = SSE) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route: what it sends, and what the data of each event is where it can stream.

    `lines` is the media type of such a stream.
    """
    content = {media: {"schema": kind}} | ({} if stream is None else {lines: {"schema": stream}})
    return {200: {"description": "The answer", "content": content}, "default": _PROBLEM}


class Described(APIRoute):
    """As FastAPI's; it answers HEAD where it answers GET."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        responses = options.pop("responses", None) or {}
        self.answers = [kind for kind in _schemas(responses) if not isinstance(kind, dict)]
        """The types of what it sends."""
        super().__init__(path, endpoint, responses=_referring(responses), **options)
        read_by = [dependency.call for dependency in self.dependant.dependencies]
        self._own_extra = self.openapi_extra or {}
        self.surface: Surface | None = next((by.surface for by in read_by if isinstance(by, JsonBody)), None)
        """What its body is."""
        self.queries = [by.model for by in read_by if isinstance(by, StrictQuery)]
        """What may stand behind the question mark."""
        sentence, _, self.description = self.description.partition("\n\n")
        self.summary = sentence.removesuffix(".")
        if self.surface is not None:
            self.summary, self.description = self.surface.summary, self.summary
        described: set[str] = self.methods or set()
        self.all_methods = frozenset(described | {"HEAD"} if "GET" in described else described)
        """The methods it answers; `methods` are those that are described."""
        if (handler := lean_handler(self.dependant)) is not None:
            self.app = request_response(handler)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As Starlette's: FastAPI's also looks for routers that include this one, and here all routes lie in a row."""
        match, inner = Route.matches(self, scope)
        if match is Match.PARTIAL and scope["method"] in self.all_methods:
            match = Match.FULL
        return match, inner

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request of one of all methods."""
        if scope["method"] in self.all_methods:
            await self.app(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    def describe_request(self, model: str) -> None:
        """Tell FastAPI what it cannot read from the signature: what is read by functions of our own.

        `model` is named in the example. It is done when the description is made, to begin the sooner.
        """
        extra: dict[str, Any] = {"parameters": [*_path_parameters(self.path_format)]}
        for query in self.queries:
            fields = query.model_json_schema()["properties"]
            extra["parameters"] += [{"name": name, "in": "query", "schema": its} for name, its in fields.items()]
        if self.surface is not None:
            schema = {"$ref": f"{SCHEMAS}{self.surface.name}Request"}
            named = {"model": model} if self.surface.asks_model else {}
            content = {"schema": schema, "example": {**named, **self.surface.example}}
            extra["requestBody"] = {"required": True, "content": {JSON: content}}
        self.openapi_extra = {name: value for name, value in extra.items() if value} | self._own_extra


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    if "{id}" in path:
        yield {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _schemas(responses: dict[int | str, dict[str, Any]]) -> Iterator[Any]:
    """Every type in them."""
    for response in responses.values():
        for content in response.get("content", {}).values():
            schema = content.get("schema", {})
            yield from get_args(schema) if _is_union(schema) else [schema]


def _referring(responses: dict[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """The same, types replaced by where their schemas are."""
    return {
        status: response
        | {
            "content": {
                media: content | {"schema": _reference(content.get("schema", {}))}
                for media, content in response.get("content", {}).items()
            }
        }
        for status, response in responses.items()
    }


def _reference(kind: Any) -> dict[str, Any]:
    if isinstance(kind, dict):
        return kind
    if _is_union(kind):
        return {"anyOf": [_reference(one) for one in get_args(kind)]}
    return {"$ref": SCHEMAS + kind.__name__}


def _is_union(kind: Any) -> bool:
    return isinstance(kind, types.UnionType)
