"""`GET /health`, `/ready`, `/v1/status` and `/metrics`: how the server is. None of them loads or keeps a model."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.errors import ApiError, draining
from server.output.frame import to_json
from server.output.model_shapes import Health
from server.pool.status import Status
from server.routes.dependencies import App
from server.routes.described import Described, answers

router = APIRouter(route_class=Described, tags=["server"])
metrics_router = APIRouter(route_class=Described, tags=["server"])


@router.get("/health", responses=answers(Health))
async def health() -> Response:
    """The process is alive; needs no key."""
    return Response(b'{"status":"ok"}', media_type="application/json")


@router.get("/ready", responses=answers(Health))
async def ready(app: App) -> Response:
    """Requests are taken: 200, else 503."""
    if app.pool.draining:
        raise draining()
    if not app.pool.ready:
        raise ApiError(
            503,
            "No model can be served at the moment.",
            type="server_error",
            code="not_ready",
            headers={"retry-after": "1"},
        )
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/v1/status", responses=answers(Status))
async def status(app: App) -> Response:
    """Budget, models with their bytes, and the queue."""
    return Response(to_json(app.pool.status()), media_type="application/json")


@metrics_router.get("/metrics", responses=answers({"type": "string"}, media="text/plain"))
async def metrics(app: App) -> Response:
    """The Prometheus page."""
    return Response(app.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
