"""Routes of this server and of a new kind of job: solved leanly where they ask for little, else by FastAPI."""

from __future__ import annotations

import json
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Query
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from server.app import create_app
from server.routes.dependencies import App
from server.routes.described import Described
from server.routes.lean import lean_handler
from server.routes.table import METRICS, ROUTERS
from server.settings.config import Settings
from tests.http.conftest import settings

calls: list[str] = []
router = APIRouter(route_class=Described)


def api_routes(of: APIRouter) -> list[APIRoute]:
    return [route for route in of.routes if isinstance(route, APIRoute)]


async def counted(request: Request) -> str:
    calls.append(request.scope["path"])
    return "once"


async def twice(first: Annotated[str, Depends(counted)], second: Annotated[str, Depends(counted)]) -> str:
    return f"{first} {second}"


def in_a_thread() -> str:
    return "thread"


@router.get("/lean")
async def lean(app: App, one: Annotated[str, Depends(counted)], two: Annotated[str, Depends(twice)]) -> Response:
    return Response(f"{one} {two} {len(app.catalog.entries)}")


class Found(BaseModel):
    limit: int
    word: str


@router.get("/of-fastapi")
async def of_fastapi(limit: Annotated[int, Query(ge=1)], word: Annotated[str, Depends(in_a_thread)]) -> Found:
    return Found(limit=limit, word=word)


async def ask(app: Any, method: str, path: str, query: str = "") -> tuple[int, bytes]:
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def app(canary_path):
    app = create_app(Settings.model_validate(settings(canary_path)))
    app.router.routes += router.routes
    return app


async def test_a_dependency_is_asked_once_for_each_request(app):
    calls.clear()
    assert await ask(app, "GET", "/lean") == (200, b"once once once 2")
    assert calls == ["/lean"]
    assert await ask(app, "HEAD", "/lean") == (200, b"once once once 2")


async def test_what_asks_for_more_is_fastapis(app):
    assert [lean_handler(route.dependant) is None for route in api_routes(router)] == [False, True]
    status, body = await ask(app, "GET", "/of-fastapi", "limit=3")
    assert (status, json.loads(body)) == (200, {"limit": 3, "word": "thread"})


@pytest.mark.parametrize(("query", "code"), [("limit=x", "invalid_type"), ("", "missing_required_parameter")])
async def test_what_fastapi_refuses_is_said_in_our_words(app, query, code):
    status, body = await ask(app, "GET", "/of-fastapi", query)
    error = json.loads(body)["error"]
    assert (status, error["param"], error["code"]) == (400, "limit", code)


async def test_both_are_described(app):
    document = json.loads((await ask(app, "GET", "/openapi.json"))[1])
    operation = document["paths"]["/of-fastapi"]["get"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Found")
    assert [parameter["name"] for parameter in operation["parameters"]] == ["limit"]
    assert {"Found", "ChatRequest", "ChatCompletion"} <= set(document["components"]["schemas"])


def test_every_route_of_ours_is_solved_leanly():
    routes = [route for one in (*ROUTERS, METRICS) for route in api_routes(one)]
    assert [route.path for route in routes if lean_handler(route.dependant) is None] == []
