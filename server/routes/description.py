"""`GET /openapi.json` and `/docs`: the server's own description, and a page to read and try it without a network.

Owns the page: Swagger UI from the package that holds its files, and what its browser may do. Keys are the gate's.
"""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from server.output.frame import to_json
from server.routes.dependencies import App
from server.routes.described import Described, answers
from server.routes.openapi import describe

router = APIRouter(route_class=Described, tags=["server"])

_PACKAGE: Final = "fastapi_offline"
_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>onecard</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START: Final = """SwaggerUIBundle({
  url: new URL("openapi.json", location.origin + location.pathname).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  validatorUrl: null,
});
"""


@router.get("/openapi.json", responses=answers({"type": "object"}))
async def openapi(request: Request, app: App) -> Response:
    """This description."""
    # Made once, in a thread: it takes a tenth of a second.
    if (whole := request.app.openapi_schema) is None:
        names = [*app.catalog.names, *(alias for entry in app.catalog.entries for alias in entry.aliases)]
        whole = request.app.openapi_schema = await asyncio.to_thread(describe, request.app.routes, names)
    return Response(to_json(whole), media_type="application/json")


@router.get("/docs", responses=answers({"type": "string"}, media="text/html"))
async def docs() -> Response:
    """This description as a page."""
    return HTMLResponse(_PAGE, headers=_HEADERS)


@router.get("/docs/start.js", include_in_schema=False)
async def start() -> Response:
    """What begins the page, because its policy lets no script stand in it."""
    return Response(_START, media_type="text/javascript", headers=_HEADERS)


@router.get("/docs/swagger-ui.css", include_in_schema=False)
async def style() -> Response:
    """Swagger UI's."""
    return FileResponse(_assets() / "swagger-ui.css", media_type="text/css", headers=_HEADERS)


@router.get("/docs/swagger-ui-bundle.js", include_in_schema=False)
async def script() -> Response:
    """Swagger UI's."""
    return FileResponse(_assets() / "swagger-ui-bundle.js", media_type="text/javascript", headers=_HEADERS)


def _assets() -> Path:
    """The folder of Swagger UI's files; the package is not imported for it."""
    found: Any = importlib.util.find_spec(_PACKAGE)
    return Path(found.submodule_search_locations[0]) / "static"
