"""Builds the one application: catalogue, metrics, pool, routes, and the gate around them. There are no globals."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from fastapi import FastAPI
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from server.door.gate import Gate
from server.error_bodies import error_body, speaks_anthropic
from server.errors import ApiError, clip
from server.history import History
from server.metrics import Metrics
from server.pool.events import Events
from server.pool.pool import Pool
from server.routes.anthropic import count_message_tokens, create_message
from server.routes.capacity import capacity
from server.routes.chat import chat_completions
from server.routes.completions import completions
from server.routes.described import openapi
from server.routes.embeddings import embeddings
from server.routes.events import events
from server.routes.health import health, metrics, ready, status
from server.routes.infill import infill
from server.routes.models import get_model, list_models, load_model, unload_model
from server.routes.props import props
from server.routes.rerank import rerank
from server.routes.responses import (
    compact_response,
    count_input_tokens,
    create_response,
    delete_response,
    get_response,
    list_input_items,
)
from server.routes.services import Services
from server.routes.tokens import detokenize, tokenize
from server.settings.catalog import Catalog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from server.settings.config import Settings


def create_app(settings: Settings, *, pool: Pool | None = None) -> FastAPI:
    """The application over its own pool, or over a given one. Raises CatalogError."""
    # sse-starlette would cut every stream when uvicorn begins to exit; here streams end when the pool ends their jobs.
    AppStatus.disable_automatic_graceful_drain()  # type: ignore[no-untyped-call]
    catalog = Catalog(settings)
    counted = Metrics(
        [entry.name for entry in catalog.entries],
        backends=sorted({entry.backend for entry in catalog.entries}),
        vllm_names=settings.metrics.vllm_names,
    )
    owned = pool if pool is not None else Pool(settings, catalog, counted)
    told = Events()
    owned.on_change.append(told.on_change)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await owned.start()
        try:
            yield
        finally:
            await owned.close(settings.server.drain_s)

    app = FastAPI(
        title="onecard",
        routes=_routes(with_metrics=settings.metrics.enabled),
        lifespan=lifespan,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
    )
    app.state.catalog, app.state.pool, app.state.metrics = catalog, owned, counted
    history = History(
        max_count=settings.server.stored_responses,
        max_bytes=settings.server.stored_responses_bytes,
        ttl_s=settings.server.stored_responses_ttl_s,
    )
    app.state.services = Services(settings, catalog, owned, counted, told, history, started_unix=int(time.time()))
    app.add_middleware(Gate, settings=settings, draining=lambda: owned.draining)
    return app


def _routes(*, with_metrics: bool) -> list[BaseRoute]:
    """Every route there is; the more specific first."""
    routes = [
        Route("/health", health, methods=["GET"]),
        Route("/ready", ready, methods=["GET"]),
        Route("/v1/status", status, methods=["GET"]),
        Route("/v1/events", events, methods=["GET"]),
        Route("/v1/capacity", capacity, methods=["GET"]),
        Route("/v1/models", list_models, methods=["GET"]),
        Route("/models", list_models, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
        Route("/props", props, methods=["GET"]),
        Route("/v1/models/{id:path}/load", load_model, methods=["POST"]),
        Route("/v1/models/{id:path}/unload", unload_model, methods=["POST"]),
        Route("/v1/models/{id:path}", get_model, methods=["GET"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/messages", create_message, methods=["POST"]),
        Route("/v1/messages/count_tokens", count_message_tokens, methods=["POST"]),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/compact", compact_response, methods=["POST"]),
        Route("/v1/responses/input_tokens", count_input_tokens, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", list_input_items, methods=["GET"]),
        Route("/v1/responses/{id}", get_response, methods=["GET"]),
        Route("/v1/responses/{id}", delete_response, methods=["DELETE"]),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/rerank", rerank, methods=["POST"]),
        Route("/infill", infill, methods=["POST"]),
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
    ]
    return _closed([*routes, Route("/metrics", metrics, methods=["GET"])] if with_metrics else routes)


def _closed(routes: list[Route]) -> list[BaseRoute]:
    """The routes, each path closed to methods it has not: no later path whose parameter fits the name may take them."""
    closed: list[BaseRoute] = []
    for i, route in enumerate(routes):
        closed.append(route)
        if all(later.path != route.path for later in routes[i + 1 :]):
            methods = {method for other in routes if other.path == route.path for method in other.methods or ()}
            closed.append(Route(route.path, _WrongMethod(sorted(methods)), methods=[]))
    return closed


class _WrongMethod:
    """What answers a method that a path has not."""

    def __init__(self, allowed: list[str]) -> None:
        self._allowed = ", ".join(allowed)

    async def __call__(self, _scope: Scope, _receive: Receive, _send: Send) -> None:
        raise HTTPException(405, headers={"Allow": self._allowed})


async def _api_error(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError)
    anthropic = speaks_anthropic(request.scope["path"], request.scope["headers"])
    body = error_body(problem, anthropic=anthropic, request_id=request.state.request_id)
    return Response(body, status_code=problem.status, media_type="application/json", headers=problem.headers)


async def _http_error(request: Request, problem: Exception) -> Response:
    """The router's own refusals, in OpenAI's shape."""
    assert isinstance(problem, HTTPException)
    where = f"{clip(request.method)} {clip(request.scope['path'])}"
    if problem.status_code == 405:
        allowed = (problem.headers or {}).get("Allow", "")
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": f"{allowed}, OPTIONS"})
        told = f"Method not allowed: {where}. Use {allowed}."
        wrong = ApiError(405, told, code="method_not_allowed", headers={"Allow": allowed})
    elif problem.status_code == 404:
        told = f"Unknown request URL: {where}. {_rather(request.scope['path'])}"
        wrong = ApiError(404, told, code="unknown_url")
    else:
        wrong = ApiError(problem.status_code, "The request was refused.", headers=problem.headers)
    return await _api_error(request, wrong)


def _rather(path: str) -> str:
    """What to do about a path that is unknown: the base URL is what is wrong most often."""
    known = {route.path for route in _routes(with_metrics=True) if isinstance(route, Route)}
    plain = path.rstrip("/")
    if plain.startswith("/v1/v1") and plain[3:] in known:
        return "The path says /v1 twice: leave it out of the base URL."
    if f"/v1{plain}" in known:
        return f"The base URL ends in /v1: ask for /v1{plain}."
    if plain in known:
        return f"Ask for {plain}, without the slash."
    if plain.startswith("/api/"):
        return "Ollama's API is not served here, OpenAI's is: the base URL ends in /v1."
    return "GET /openapi.json lists what there is."
