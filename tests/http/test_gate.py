"""The last catch: whatever a route does, the client gets OpenAI's shape and an id, and the log no words of theirs."""

from __future__ import annotations

import json
import logging
import time

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from server.accounts.book import Accounts
from server.door.gate import Gate
from server.door.rules import DoorRules
from server.errors import ApiError
from server.settings.config import Settings

SCOPE = {
    "type": "http",
    "method": "GET",
    "path": "/x",
    "raw_path": b"/x",
    "headers": [(b"host", b"localhost"), (b"x-request-id", b"mine")],
}
START = {"type": "http.response.start", "status": 200, "headers": []}


async def run(app, scope=None, **settings) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    rules = DoorRules(Settings.model_validate({"server": settings}), Accounts((), time.monotonic))
    gate = Gate(app, rules=rules, draining=lambda: False)
    await gate({**SCOPE, **(scope or {})}, receive, send)
    return sent


async def test_an_exception_before_the_headers_is_a_500_that_tells_nothing(caplog):
    async def app(scope, receive, send):
        raise RuntimeError("secret words of /a/path")

    with caplog.at_level(logging.INFO, "onecard.access"):
        start, body = await run(app)
    assert start["status"] == 500
    assert (b"x-request-id", b"mine") in start["headers"]
    error = json.loads(body["body"])["error"]
    assert error["code"] == "internal_error"
    assert "mine" in error["message"]
    assert "secret" not in caplog.text + error["message"]
    assert "error=RuntimeError" in caplog.text
    assert "status=500" in caplog.text


async def test_an_exception_after_the_headers_ends_the_answer(caplog):
    async def app(scope, receive, send):
        await send(START)
        raise RuntimeError

    assert [message["type"] for message in await run(app)] == ["http.response.start"]


@pytest.mark.parametrize("problem", [TimeoutError, ClientDisconnect])
async def test_a_client_that_is_gone_is_logged_as_499(caplog, problem):
    async def app(scope, receive, send):
        await send(START)
        raise problem

    with caplog.at_level(logging.INFO, "onecard.access"):
        await run(app)
    assert "status=499" in caplog.text
    assert "request_failed" not in caplog.text


async def test_websockets_are_refused():
    async def app(scope, receive, send):
        raise AssertionError("unreachable")

    assert await run(app, {"type": "websocket"}) == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize(
    ("param", "told"), [("size", " code=invalid_value param=size\n"), ("my secret", " code=invalid_value\n")]
)
async def test_the_log_names_what_was_refused_and_not_what_was_sent(caplog, param, told):
    async def app(scope, receive, send):
        raise ApiError(400, "Invalid 'size': my words.", param=param, code="invalid_value")

    with caplog.at_level(logging.INFO, "onecard.access"):
        start, _ = await run(app)
    assert (start["status"], caplog.text.endswith(told)) == (400, True), caplog.text
    assert "words" not in caplog.text


async def test_paths_are_logged_without_their_query(caplog):
    async def app(scope, receive, send):
        await send(START)

    with caplog.at_level(logging.INFO, "onecard.access"):
        await run(app, {"raw_path": b"/x" * 500, "query_string": b"api_key=secret"})
    assert "secret" not in caplog.text
    assert len(caplog.text) < 500
