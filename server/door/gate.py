"""The door of the server: pure ASGI around every route.

Owns request ids, Host, keys, origins, content types, the size of bodies, the access log and the last catch of errors.
A body is JSON; on the paths of `backends.kinds.Kind.forms` it may be a form with files, within its kind's limits.
Everything is decided on `scope["path"]` and raw headers; without a key only `/health`, the page's own files and images
by their secret addresses open.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from starlette.requests import ClientDisconnect

from backends.registry import KINDS
from server import errors
from server.asker import ASKER, Asker
from server.door.access import header_values, request_id
from server.door.forms import OVERHEAD_BYTES, is_form
from server.door.giving_back import GivingBack
from server.error_bodies import Dialect, dialect_of, error_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from server.accounts.account import Account
    from server.door.rules import DoorRules

_NONE: Final[Mapping[str, int]] = MappingProxyType({})
_Named = dict[bytes, list[bytes]]
"""The values of headers by their names in lower case."""
access_log = logging.getLogger("onecard.access")

OPEN_PATHS = frozenset({"/health"})
_IMAGES = "/v1/images/files/"
_OPEN_PAGE, _OPEN_FILES = "/", ("/page/", _IMAGES)
"""The page and its files, which are the same on every server: it asks its person for a key. And images by addresses
that cannot be guessed: a browser that shows one sends no key."""
_PAGES = ("/docs", "/openapi.json")
"""What a person reads in a browser, which can send a key only from its own dialog."""
_DIALOG = 'Basic realm="onecard: any name, an API key as the password", charset="UTF-8"'
CLIENT_CLOSED = 499
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_EXPOSED = (
    b"x-request-id, x-onecard-model, x-onecard-queue-ms, x-onecard-load-ms, x-onecard-cached-tokens, "
    b"x-onecard-gpu-layers, x-onecard-ignored, x-onecard-not-shown, x-onecard-node, retry-after, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
_MAX_LOGGED_CHARS = 200
REFUSAL: Final = "refusal"
"""Where a request's state has the `ApiError` that answered it."""
_PLAIN: Final = re.compile(r"[\w.\[\]-]{1,80}", re.ASCII)
_SWALLOW_FACTOR = 4
"""A declared body up to this many times the limit is read and thrown away, so that the client sees its 413."""


class _BodyTooLargeError(errors.ApiError):
    def __init__(self, limit: int, *, close: bool) -> None:
        super().__init__(
            413,
            f"The request body is larger than the limit of {limit} bytes.",
            code="request_too_large",
            headers={"connection": "close"} if close else {},
        )


@dataclass
class _Exchange:
    """What one request has come to so far."""

    id: str
    dialect: Dialect
    """Whose shapes the client reads."""
    started: float
    max_body_bytes: int
    origin: bytes | None = None
    status: int | None = None
    sent_all: bool = False
    gone: bool = False
    received_bytes: int = 0
    sent_bytes: int = 0
    account: Account | None = None
    """Whose limits count, of a request that asks for work."""


class Gate:
    """ASGI middleware; one per application."""

    def __init__(
        self, app: ASGIApp, *, rules: DoorRules, draining: Callable[[], bool], uploads: Mapping[str, int] = _NONE
    ) -> None:
        """`uploads`: paths that take forms with files beside those of kinds, with the most bytes of a form."""
        self._app = app
        self._rules = rules
        self._forms = {
            path: len(kind.limits.files) * kind.limits.file_bytes + OVERHEAD_BYTES
            for kind in KINDS.values()
            for path in kind.forms
        } | dict(uploads)
        """How large a form may be, by path."""
        self._draining = draining
        self._giving_back = GivingBack()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the routes, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        dialect = dialect_of(scope["path"], headers)
        exchange = _Exchange(request_id(headers), dialect, time.monotonic(), self._rules.max_body_bytes)
        scope.setdefault("state", {})["request_id"] = exchange.id
        traceparent = header_values(headers, b"traceparent")
        ASKER.set(Asker(exchange.id, traceparent[0].decode("latin-1") if len(traceparent) == 1 else ""))
        guarded_receive, guarded_send = self._wrap(scope, exchange, receive, send)
        try:
            if scope["method"] == "OPTIONS" and self._is_preflight(scope):
                await self._answer_preflight(scope, exchange, guarded_send)
            else:
                self._check(scope, exchange)
                await self._let_in(scope, exchange, guarded_receive, guarded_send)
        except errors.ApiError as problem:
            scope["state"][REFUSAL] = problem
            await _answer(problem, exchange, guarded_send)
        except Exception as problem:
            await self._last_catch(problem, exchange, guarded_send)
        finally:
            _log(scope, exchange)
            self._giving_back.after(exchange.received_bytes + exchange.sent_bytes)

    async def _let_in(self, scope: Scope, exchange: _Exchange, receive: Receive, send: Send) -> None:
        """To the routes, on its key's account; what asks for work counts against its limits. Raises ApiError."""
        account = self._rules.account(scope["headers"])
        asker = replace(ASKER.get(), account=account)
        ASKER.set(asker)
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange.account = account
        ASKER.set(replace(asker, admission=account.admit(time.monotonic())))
        try:
            await self._app(scope, receive, send)
        finally:
            account.leave()

    async def _last_catch(self, problem: Exception, exchange: _Exchange, send: Send) -> None:
        """Our own fault: the client gets the request id, the log the place. A client that is gone is not our fault."""
        stalled = isinstance(problem, TimeoutError) and exchange.status is not None
        if stalled or isinstance(problem, ClientDisconnect):
            exchange.gone = True
            return
        access_log.error(
            "request_failed id=%s error=%s at=%s", exchange.id, type(problem).__name__, errors.place_of(problem)
        )
        if exchange.status is None:
            await _answer(errors.internal_error(exchange.id), exchange, send)

    def _check(self, scope: Scope, exchange: _Exchange) -> None:
        """Everything that can be known from the head of a request. Raises ApiError."""
        headers = scope["headers"]
        named = _by_name(headers)
        if named.get(b"content-length") and named.get(b"transfer-encoding"):
            raise errors.ApiError(
                400, "A request has a Content-Length or a Transfer-Encoding, not both.", headers={"connection": "close"}
            )
        self._check_host(headers)
        origins = named.get(b"origin", [])
        if len(origins) == 1 and self._rules.origins.allows(origins[0]):
            exchange.origin = origins[0]
        if not _is_open(scope["method"], scope["path"]):
            self._check_key(scope)
        if scope["path"].endswith("\n"):  # the router's expressions do not see it
            raise errors.ApiError(404, "Unknown request URL: it ends with a line break.", code="unknown_url")
        scope["state"]["domain"] = self._rules.keys.domain(headers)
        scope["state"]["admin"] = self._rules.keys.is_admin(headers)
        if scope["method"] not in _SAFE_METHODS:
            self._check_write(scope, named, exchange)

    def _check_key(self, scope: Scope) -> None:
        """Who calls. Raises ApiError."""
        path: str = scope["path"]
        is_page = scope["method"] in _SAFE_METHODS and (path in _PAGES or path.startswith("/docs/"))
        if (sentence := self._rules.keys.refusal(scope["headers"], by_dialog=is_page)) is not None:
            asked = {"www-authenticate": _DIALOG if is_page else "Bearer"}
            raise errors.ApiError(401, sentence, code="invalid_api_key", headers=asked)

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Who was called. Raises ApiError."""
        if (refusal := self._rules.hosts.refusal(headers)) is not None:
            status, sentence = refusal
            raise errors.ApiError(status, sentence, code="invalid_host", headers={"connection": "close"})

    def _check_write(self, scope: Scope, named: _Named, exchange: _Exchange) -> None:
        """What only requests that do something must hold. Raises ApiError."""
        if exchange.origin is None and b"cross-site" in named.get(b"sec-fetch-site", []):
            raise _foreign()
        if scope["method"] == "POST":
            most_bytes = self._forms.get(scope["path"])
            if most_bytes is not None and is_form(scope["headers"]):
                _check_form(named, exchange)
                exchange.max_body_bytes = most_bytes
            else:
                _check_json(named, or_form=most_bytes is not None)
        _check_length(named, exchange.max_body_bytes)
        if self._draining():
            raise errors.draining()

    def _is_preflight(self, scope: Scope) -> bool:
        """A browser asking before a page's real request; it can carry no key."""
        headers = scope["headers"]
        return bool(header_values(headers, b"origin") and header_values(headers, b"access-control-request-method"))

    async def _answer_preflight(self, scope: Scope, exchange: _Exchange, send: Send) -> None:
        headers = scope["headers"]
        self._check_host(headers)
        origins = header_values(headers, b"origin")
        if len(origins) != 1 or not self._rules.origins.allows(origins[0]):
            raise _foreign()
        exchange.origin = origins[0]
        asked = header_values(headers, b"access-control-request-headers")
        allow = [
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", asked[0] if asked else b"authorization, content-type"),
            (b"access-control-max-age", b"600"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": allow})
        await send({"type": "http.response.body", "body": b""})

    def _wrap(self, scope: Scope, exchange: _Exchange, receive: Receive, send: Send) -> tuple[Receive, Send]:
        """The request's channels, counted on the way in and labelled on the way out."""

        async def counted_receive() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                exchange.gone = not exchange.sent_all
            exchange.received_bytes += len(message.get("body", b""))
            if exchange.received_bytes > exchange.max_body_bytes:
                raise _BodyTooLargeError(exchange.max_body_bytes, close=True)
            return message

        async def labelled_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_labels(exchange)]}
            else:
                exchange.sent_bytes += len(message.get("body", b""))
                exchange.sent_all = not message.get("more_body", False)
            await send(message)

        return counted_receive, labelled_send


def _is_open(method: str, path: str) -> bool:
    """Whether a request needs no key."""
    is_page = path == _OPEN_PAGE or path.startswith(_OPEN_FILES)
    return path in OPEN_PATHS or (method in _SAFE_METHODS and is_page)


def _by_name(headers: Iterable[tuple[bytes, bytes]]) -> _Named:
    """Every value of each header, in order."""
    named: _Named = {}
    for name, value in headers:
        named.setdefault(name, []).append(value)
    return named


def _foreign() -> errors.ApiError:
    return errors.ApiError(403, "Web pages of this origin may not call this server.", code="origin_not_allowed")


def _check_length(named: _Named, most_bytes: int) -> None:
    declared = named.get(b"content-length", [])
    if declared and (n_bytes := int(declared[0])) > most_bytes:
        raise _BodyTooLargeError(most_bytes, close=n_bytes > _SWALLOW_FACTOR * most_bytes)


def _check_form(named: _Named, exchange: _Exchange) -> None:
    """Web pages post forms without a preflight, so every page that may not read answers is refused. Raises ApiError.

    The server's own page may: that it is one is told by the browser, in a header that no page can set.
    """
    _check_encoding(named)
    if exchange.origin is None and named.get(b"origin") and named.get(b"sec-fetch-site") != [b"same-origin"]:
        raise _foreign()


def _check_encoding(named: _Named) -> None:
    encodings = named.get(b"content-encoding", [])
    if encodings and encodings != [b"identity"]:
        raise errors.ApiError(415, "A compressed body is not accepted: leave out Content-Encoding.")


def _check_json(named: _Named, *, or_form: bool) -> None:
    """JSON, plain and unpacked; asking for it keeps web pages from posting without a preflight. Raises ApiError."""
    _check_encoding(named)
    types = named.get(b"content-type", [])
    media, _, parameters = (types[0] if len(types) == 1 else b"").lower().partition(b";")
    charset = parameters.replace(b" ", b"").replace(b'"', b"")
    if media.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
        other = ", or a form with files, sent with 'multipart/form-data'" if or_form else ""
        told = f"The body must be JSON in UTF-8, sent with 'Content-Type: application/json'{other}."
        raise errors.ApiError(415, told)


def _labels(exchange: _Exchange) -> list[tuple[bytes, bytes]]:
    """The headers every answer has."""
    labels = [(b"x-request-id", exchange.id.encode("ascii")), (b"server", b"onecard")]
    if exchange.dialect == "anthropic":  # the name by which Anthropic's SDK finds it
        labels.append((b"request-id", exchange.id.encode("ascii")))
    if exchange.account is not None and exchange.account.limited:
        told = exchange.account.headers(time.monotonic(), anthropic=exchange.dialect == "anthropic")
        labels += [(name.encode("ascii"), value.encode("ascii")) for name, value in told.items()]
    if exchange.origin is not None:
        labels += [
            (b"access-control-allow-origin", exchange.origin),
            (b"access-control-expose-headers", _EXPOSED),
            (b"vary", b"origin"),
        ]
    return labels


async def _answer(problem: errors.ApiError, exchange: _Exchange, send: Send) -> None:
    """Send an error, unless the answer has already begun or the client is gone."""
    if exchange.status is not None:
        return
    if problem.status == CLIENT_CLOSED:
        exchange.gone = True
    body = error_body(problem, dialect=exchange.dialect, request_id=exchange.id)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    headers += [(name.encode("ascii"), value.encode("ascii")) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _log(scope: Scope, exchange: _Exchange) -> None:
    """One line per request; the path as it came over the wire (printable by then), without its query."""
    path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:_MAX_LOGGED_CHARS]
    if scope["path"].startswith(_IMAGES):  # who reads the log is not who may see the image
        path = f"{_IMAGES}..."
    status = CLIENT_CLOSED if exchange.gone or exchange.status is None else exchange.status
    milliseconds = (time.monotonic() - exchange.started) * 1000
    told = f"request id={exchange.id} method={scope['method']} path={path} status={status} ms={milliseconds:.1f}"
    access_log.info("%s%s", told, _reason(scope["state"].get(REFUSAL)))


def _reason(problem: errors.ApiError | None) -> str:
    """What was wrong with a request, by the names that the client is told; a message may hold what it sent."""
    named = {} if problem is None else {"code": problem.code, "param": problem.param}
    return "".join(f" {name}={value}" for name, value in named.items() if value and _PLAIN.fullmatch(value))
