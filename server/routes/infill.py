"""`POST /infill`, for editors that speak with llama.cpp's server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.output.frame import Head
from server.output.infill import InfillAnswer
from server.output.shapes import InfillObject
from server.routes.answering import AnswerPlan, answer
from server.routes.dependencies import App, ModelQuery, StrictQuery, parsed
from server.routes.described import Described, answers
from server.routes.services import new_id, served_headers
from server.schemas.infill import SURFACE, InfillRequest, parse_infill

if TYPE_CHECKING:
    from backends.messages import Ready, Started

router = APIRouter(route_class=Described, tags=["answers"])
PARAMS = {"prompt": "input_prefix", "suffix": "input_suffix"}


@router.post(SURFACE.path, responses=answers(InfillObject, stream=InfillObject))
async def infill(
    request: Request,
    app: App,
    query: Annotated[ModelQuery, Depends(StrictQuery(ModelQuery))],
    asked: Annotated[InfillRequest, Depends(parsed(SURFACE, parse_infill))],
) -> Response:
    """Fill in what is missing between two texts, streamed or whole."""
    model = app.model(asked.model or query.model, alias="infill")
    app.refuse_too_long(model, asked.text_bytes, param="input_prefix")
    head = Head(new_id("infill-"), 0, model.name, "")
    job = asked.job(head.id)
    settings = {
        "n_predict": -1 if asked.n_predict is None else asked.n_predict,
        "temperature": job.sampling.temperature,
        "top_k": job.sampling.top_k,
        "top_p": job.sampling.top_p,
        "min_p": job.sampling.min_p,
        "seed": asked.seed,
        "stop": job.stop,
        "n_indent": asked.n_indent or 0,
        "t_max_predict_ms": asked.t_max_predict_ms or 0,
    }

    def begin(ready: Ready | None, started: Started | None) -> InfillAnswer:
        return InfillAnswer(
            model.name,
            started,
            settings={"n_ctx": ready.text.context if ready and ready.text else None, **settings},
            fields=asked.response_fields,
            silent=asked.only_prepares,
            clock=time.monotonic,
        )

    plan = AnswerPlan(
        jobs=[job],
        choices_per_job=1,
        priority=asked.priority or 0,
        keep_alive_s=asked.keep_alive,
        streamed=bool(asked.stream),
        params=PARAMS,
        headers=served_headers(model, asked.ignored),
        head=lambda _ready: head,
        require=lambda _ready: None,
        new_stream=lambda _head, ready, started: begin(ready, started),
        new_whole=begin,
        limits=asked.limits,
    )
    return await answer(request, app, model, plan)
