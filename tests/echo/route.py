"""`POST /v1/echo`: a form with a file, answered by what is in it; `POST /v1/echo/text`: the same of a text, as JSON."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from server.door.forms import receive
from server.output.frame import to_json
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.running import Run
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.single import single
from server.schemas.problems import check
from server.schemas.surface import Surface
from tests.echo.kind import ECHO, Echo, Echoed

router = APIRouter(route_class=Described, tags=["echoes"])


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of both."""

    text: str
    name: str = ""
    sha256: str = ""


class TextRequest(BaseModel):
    """The body of `/v1/echo/text`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str
    text: Annotated[str, Field(min_length=1, max_length=1000)]


SURFACE = Surface(
    path="/v1/echo/text",
    name="EchoText",
    summary="Say a text",
    model=TextRequest,
    example={"text": "hello"},
    refused={"language": ("en",)},
    no_effect={"user"},
    streams=False,
)


def parse(data: dict[str, Any]) -> TextRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(TextRequest, data)


@router.post("/v1/echo", responses=answers(Said))
async def echo(request: Request, app: App) -> Response:
    """Say what is in a file."""
    async with receive(request, app.spool, ECHO.limits) as form:
        model = app.model(form.text("model"))
        file = form.file("file")
        said = await _said(request, app, model, Echo(new_id("echo-"), file, delay_ms=int(form.text("delay_ms") or 0)))
        return _answer(model, Said(said, file.name, file.digest), [])


@router.post(SURFACE.path, responses=answers(Said))
async def echo_text(
    request: Request, app: App, asked: Annotated[TextRequest, Depends(parsed(SURFACE, parse))]
) -> Response:
    """Say a text."""
    model = app.model(asked.model)
    said = await _said(request, app, model, Echo(new_id("echo-"), text=asked.text))
    return _answer(model, Said(said), [name for name in asked.model_extra or {} if name not in SURFACE.fields])


async def _said(request: Request, app: Services, model: ModelFacts, job: Echo) -> str:
    model.refuse_other_kind(ECHO)
    run = Run([app.pool.submit(model.entry, job)], 1, ECHO.params)
    return (await single(request, run, Echoed)).text


def _answer(model: ModelFacts, said: Said, ignored: list[str]) -> Response:
    return Response(to_json(said), media_type="application/json", headers=served_headers(model, ignored))
