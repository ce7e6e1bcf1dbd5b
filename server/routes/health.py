"""`GET /health`, `/ready`, `/v1/status` and `/metrics`: how the server is. None of them loads or keeps a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from server.errors import ApiError, draining
from server.output.frame import to_json
from server.routes.services import services

if TYPE_CHECKING:
    from starlette.requests import Request


async def health(request: Request) -> Response:
    """The process is alive; asked without a key."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def ready(request: Request) -> Response:
    """Requests are taken: 200, else 503."""
    pool = services(request).pool
    if pool.draining:
        raise draining()
    if not pool.ready:
        raise ApiError(
            503,
            "No model can be served at the moment.",
            type="server_error",
            code="not_ready",
            headers={"retry-after": "1"},
        )
    return Response(b'{"status":"ready"}', media_type="application/json")


async def status(request: Request) -> Response:
    """Budget, models with their bytes, and the queue."""
    return Response(to_json(services(request).pool.status()), media_type="application/json")


async def metrics(request: Request) -> Response:
    """The Prometheus page."""
    app = services(request)
    return Response(app.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
