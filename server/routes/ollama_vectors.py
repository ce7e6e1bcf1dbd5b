"""`POST /api/embed` and `/api/embeddings`: vectors of texts, in Ollama's shape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from backends.kinds import EMBED as EMBED_KIND
from server.errors import ApiError
from server.output.frame import to_json
from server.output.ollama_shapes import OllamaVector, OllamaVectors
from server.output.vectors import Rows, ollama_body
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.embeddings import in_turns, refuse_too_long
from server.routes.ollama import called, load_by_job, near, wished
from server.routes.rows import Answered, answered
from server.routes.services import new_id, served_headers
from server.schemas.ollama_models import (
    EMBED,
    EMBEDDINGS,
    TO_EMBEDDINGS,
    OllamaTexts,
    parse_ollama_embed,
    parse_ollama_embeddings,
)

if TYPE_CHECKING:
    from server.routes.services import ModelFacts, Services

router = APIRouter(route_class=Described, tags=["Ollama"], dependencies=[Depends(near)])


@router.post(EMBED.path, responses=answers(OllamaVectors))
async def ollama_embed(
    request: Request, app: App, asked: Annotated[OllamaTexts, Depends(parsed(EMBED, parse_ollama_embed))]
) -> Response:
    """One vector of length 1 per text. A text that does not fit is refused, never cut."""
    began = time.monotonic()
    model, headers, done = await _vectors(request, app, asked)
    figures = {
        "total_duration": round((time.monotonic() - began) * 1e9),
        "load_duration": round(float(headers.get("x-onecard-load-ms", 0)) * 1e6),
        "prompt_eval_count": 0 if done is None else done.n_tokens,
    }
    body = ollama_body(Rows(0) if done is None else done.rows, model=model.name, figures=figures)
    return StreamingResponse(in_turns(body), media_type="application/json", headers=headers)


@router.post(EMBEDDINGS.path, responses=answers(OllamaVector))
async def ollama_embeddings(
    request: Request, app: App, asked: Annotated[OllamaTexts, Depends(parsed(EMBEDDINGS, parse_ollama_embeddings))]
) -> Response:
    """The vector of one text, as long as the model makes it."""
    try:
        _, headers, done = await _vectors(request, app, asked)
    except ApiError as problem:
        raise TO_EMBEDDINGS.error(problem) from None
    vector = [] if done is None else done.rows.numbers()
    return Response(to_json(OllamaVector(embedding=vector)), media_type="application/json", headers=headers)


async def _vectors(
    request: Request, app: Services, asked: OllamaTexts
) -> tuple[ModelFacts, dict[str, str], Answered | None]:
    """The model, the headers and the rows; no rows where the model was only loaded. Raises ApiError."""
    model = called(app, asked.model)
    keep_alive_s, unserved = wished(request, asked.keep_alive)
    headers = served_headers(model, [*asked.ignored, *unserved])
    model.refuse_other_kind(EMBED_KIND)
    if asked.meant is None:
        await load_by_job(request, app, model, keep_alive_s)
        return model, headers, None
    refuse_too_long(app, model, asked.meant)
    jobs, n_rows = asked.meant.jobs(new_id("embd-")), len(asked.meant.input)
    done = await answered(request, app, model, jobs, n_rows=n_rows, priority=None, keep_alive_s=keep_alive_s)
    return model, {**headers, **done.headers}, done
