"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from backends.kinds import EMBED
from server.output.shapes import EmbeddingList
from server.output.vectors import embedding_body
from server.routes.dependencies import App, check_wishes, parsed
from server.routes.described import Described, answers
from server.routes.rows import answered
from server.routes.services import new_id, served_headers
from server.schemas.embeddings import SURFACE, EmbeddingRequest, parse_embedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from server.routes.services import ModelFacts, Services

router = APIRouter(route_class=Described, tags=["vectors and scores"])
_SMALL_NUMBERS: Final = 65_536
"""Up to here an answer is written at once; a larger one in slices, between which others have their turn."""


@router.post(SURFACE.path, responses=answers(EmbeddingList))
async def embeddings(
    request: Request, app: App, asked: Annotated[EmbeddingRequest, Depends(parsed(SURFACE, parse_embedding))]
) -> Response:
    """One vector per input, in their order."""
    model = app.model(asked.model)
    check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
    model.refuse_other_kind(EMBED)
    refuse_too_long(app, model, asked)
    done = await answered(
        request,
        app,
        model,
        asked.jobs(new_id("embd-")),
        n_rows=len(asked.input),
        priority=asked.priority,
        keep_alive_s=asked.keep_alive,
    )
    body = embedding_body(done.rows, model=model.name, n_tokens=done.n_tokens, as_base64=asked.as_base64)
    headers = {**served_headers(model, asked.ignored), **done.headers}
    if done.rows.n * done.rows.dimensions <= _SMALL_NUMBERS:
        return Response(b"".join(body), media_type="application/json", headers=headers)
    return StreamingResponse(in_turns(body), media_type="application/json", headers=headers)


def refuse_too_long(app: Services, model: ModelFacts, asked: EmbeddingRequest) -> None:
    """Refuse a text whose characters alone prove that it is too long, before any load. Raises ApiError 400."""
    place = max(range(len(asked.input)), key=lambda place: len(asked.input[place]))
    longest = asked.input[place]
    if isinstance(longest, str) and model.tokens_cover_text:
        app.refuse_too_long(model, len(longest), param="input", noun=f"input[{place}]")


async def in_turns(slices: Iterator[bytes]) -> AsyncIterator[bytes]:
    """The slices, between which others have their turn."""
    for part in slices:
        yield part
        await asyncio.sleep(0)
