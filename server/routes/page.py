"""`GET /`: the page for people, with status and chat; static files that ask the API as any other client does.

Owns what its browser may do. The files hold nothing of this server, so they need no key: the page asks for one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from server.errors import ApiError, clip
from server.routes.described import Described, answers

router = APIRouter(route_class=Described, tags=["server"])
_FILES: Final = Path(__file__).resolve().parents[1] / "page"
_TYPES: Final = {".css": "text/css", ".js": "text/javascript"}
HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


@router.get("/", responses=answers({"type": "string"}, media="text/html"))
async def page() -> Response:
    """Status and chat in a browser; needs no key itself."""
    return FileResponse(_FILES / "index.html", media_type="text/html", headers=HEADERS)


@router.get("/page/{id}", include_in_schema=False)
async def part(request: Request) -> Response:
    """A script or the style of the page."""
    name = request.path_params["id"]
    for file in _FILES.iterdir():
        if file.name == name and file.suffix in _TYPES:
            return FileResponse(file, media_type=_TYPES[file.suffix], headers=HEADERS)
    raise ApiError(404, f"The page has no file '{clip(name)}'.", code="unknown_url")
