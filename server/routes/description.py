"""`GET /openapi.json`: the server's own description."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server.openapi import describe
from server.output.frame import to_json
from server.routes.dependencies import App
from server.routes.described import Described

router = APIRouter(route_class=Described)


@router.get("/openapi.json")
async def openapi(app: App) -> Response:
    """This description."""
    names = [name for entry in app.catalog.entries for name in (entry.name, *entry.aliases)]
    return Response(to_json(describe(names)), media_type="application/json")
