"""`POST /v1/echo`: a form with a file, answered by what is in it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.door.forms import receive
from server.output.frame import to_json
from server.routes.dependencies import App
from server.routes.described import Described
from server.routes.running import Run
from server.routes.services import new_id, served_headers
from server.routes.single import single
from tests.echo.kind import ECHO, Echo, Echoed

router = APIRouter(route_class=Described)


@router.post("/v1/echo")
async def echo(request: Request, app: App) -> Response:
    """Say what is in a file."""
    async with receive(request, app.spool, ECHO.limits) as form:
        model = app.model(form.text("model"))
        model.refuse_other_kind(ECHO)
        job = Echo(new_id("echo-"), form.file("file"), delay_ms=int(form.text("delay_ms") or 0))
        run = Run([app.pool.submit(model.entry, job)], 1, ECHO.params)
        echoed = await single(request, run, Echoed)
        body = to_json({"text": echoed.text, "name": job.file.name, "sha256": job.file.digest})
        return Response(body, media_type="application/json", headers=served_headers(model))
