"""Asks the application's own routes a line of a batch, as its key would over HTTP, and tells of models for the runner.

Owns what a line may: what its key may, and no wish about models, queue or streams.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from server import errors
from server.accounts.account import ANONYMOUS
from server.asker import ASKER, Asker
from server.batches.under_way import Answer
from server.scheduling.decisions import ModelState

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Scope

    from server.accounts.account import Account
    from server.batches.records import LeftLine
    from server.pool.pool import Pool
    from server.settings.catalog import Catalog

_PASSING: Final = frozenset({429, 500, 502, 503})
_BUSY: Final = 503
_GIVEN_UP: Final = 499
"""A model was unloaded, or its load was: no client of a batch has hung up, so its line is asked again."""
_LOG: Final = logging.getLogger("onecard.batches")


class Asking:
    """`app` answers without a door, and `whole` is the application with it, as routes look for it.

    `account_of` knows whose name a batch has; None where that key is gone.
    """

    def __init__(self, app: ASGIApp, whole: ASGIApp, account_of: Callable[[str], Account | None]) -> None:
        self._app = app
        self._whole = whole
        self._account_of = account_of

    async def __call__(self, line: LeftLine) -> Answer:
        """The answer of a line, whatever it is."""
        request_id = f"req_{secrets.token_hex(16)}"
        account = self._account_of(line.owner)
        if account is None:
            gone = errors.ApiError(401, f"The key '{line.owner}' of this batch is not configured any more.")
            return Answer(401, request_id, gone.body(), may_pass=False)
        ASKER.set(Asker(request_id, account=account, background=True))
        try:
            return await self._answered(line, request_id)
        except errors.ApiError as problem:
            return refused(problem, request_id)
        except Exception as problem:
            error, at = type(problem).__name__, errors.place_of(problem)
            _LOG.error("batch_line_failed id=%s error=%s at=%s", request_id, error, at)
            return Answer(500, request_id, errors.internal_error(request_id).body(), may_pass=False)

    async def _answered(self, line: LeftLine, request_id: str) -> Answer:
        sent: list[Message] = []
        unread = [line.body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await asyncio.Event().wait()  # a task that is cancelled is a client that hangs up
            raise asyncio.CancelledError

        async def send(message: Message) -> None:
            sent.append(message)

        await self._app({**_scope(line, request_id), "app": self._whole}, receive, send)
        status = int(sent[0]["status"])
        headers = {name.lower(): value for name, value in sent[0].get("headers", [])}
        body = b"".join(message.get("body", b"") for message in sent[1:])
        may_pass = _may_pass(status, headers.get(b"x-should-retry", b""))
        return Answer(status, request_id, body, may_pass=may_pass, short_of=_short_of(status, body))


def _may_pass(status: int, should_retry: bytes) -> bool:
    return status == _GIVEN_UP or (status in _PASSING and should_retry != b"false")


class _Error(msgspec.Struct):
    code: str | None = None
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error


def _short_of(status: int, body: bytes) -> str | None:
    """What is missing where others hold the memory that a line's model needs; None for any other answer."""
    if status != _BUSY:
        return None
    error = msgspec.json.decode(body, type=_Refusal).error
    return error.message if error.code == "memory_busy" else None


def refused(problem: errors.ApiError, request_id: str) -> Answer:
    """An error as the answer of a line."""
    should_retry = problem.headers.get("x-should-retry", "").encode("ascii")
    body, may_pass = problem.body(), _may_pass(problem.status, should_retry)
    return Answer(problem.status, request_id, body, may_pass=may_pass, short_of=_short_of(problem.status, body))


def _scope(line: LeftLine, request_id: str) -> Scope:
    """As the door leaves it: cached prefixes are shared with other lines of the owner, not with requests of others."""
    state = {
        "request_id": request_id,
        "domain": "" if line.owner == ANONYMOUS else f"batch {line.owner}",
        "admin": line.owner == ANONYMOUS,
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": line.endpoint,
        "raw_path": line.endpoint.encode("ascii"),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(line.body)).encode("ascii")),
        ],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": state,
    }


class PoolMachine:
    """The models of a pool, as the runner asks for them."""

    def __init__(self, pool: Pool, catalog: Catalog, clock: Callable[[], float]) -> None:
        self._pool = pool
        self._catalog = catalog
        self._clock = clock

    def width(self, model: str) -> int:
        """All its places but one, which a client's request finds free; both where there are two."""
        entry = self._catalog.resolve(model)
        if entry is None:
            return 1
        ready = self._pool.info(entry.name).ready
        places = entry.config.parallel if ready is None else ready.parallel
        return places - 1 if places > 2 else places

    def resident(self, model: str) -> bool:
        """Whether it is loaded and takes requests; one that does not exist needs no load to be refused."""
        entry = self._catalog.resolve(model)
        return entry is None or self._pool.info(entry.name).state is ModelState.READY

    def same(self, model: str, name: str) -> bool:
        """Whether a line's name for a model means the one of this name."""
        entry = self._catalog.resolve(model)
        return entry is not None and entry.name == name

    def quiet_s(self) -> float:
        """How long no client has waited for anything."""
        return self._pool.foreground.quiet_s(self._clock())
