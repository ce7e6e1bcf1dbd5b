"""`GET /openapi.json`: the server's own description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from server.openapi import describe
from server.output.frame import to_json
from server.routes.services import services

if TYPE_CHECKING:
    from starlette.requests import Request


async def openapi(request: Request) -> Response:
    """Built when it is asked for, which is seldom."""
    names = [name for entry in services(request).catalog.entries for name in (entry.name, *entry.aliases)]
    return Response(to_json(describe(names)), media_type="application/json")
