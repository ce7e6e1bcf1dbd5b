"""`POST /v1/echo`: a form with a file, answered by what is in it."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from server.door.forms import receive
from server.output.frame import to_json
from server.routes.running import Run
from server.routes.services import new_id, served_headers, services
from server.routes.single import single
from tests.echo.kind import ECHO, Echo, Echoed

router = APIRouter()


@router.post("/v1/echo")
async def echo(request: Request) -> Response:
    app = services(request)
    async with receive(request, app.spool, ECHO.limits) as form:
        entry = app.entry(form.text("model"))
        app.refuse_other_kind(entry, ECHO)
        job = Echo(new_id("echo-"), form.file("file"), delay_ms=int(form.text("delay_ms") or 0))
        run = Run([app.pool.submit(entry, job)], 1, ECHO.params)
        echoed = await single(request, run, Echoed)
        body = to_json({"text": echoed.text, "name": job.file.name, "sha256": job.file.digest})
        return Response(body, media_type="application/json", headers=served_headers(entry))
