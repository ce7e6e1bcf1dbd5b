"""`POST /v1/rerank`: documents in the order in which they answer a query."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from backends.kinds import RERANK
from server.output.ranking import ranking_body
from server.output.shapes import Ranking
from server.routes.dependencies import App, check_wishes, parsed
from server.routes.described import Described, answers
from server.routes.rows import answered
from server.routes.services import new_id, served_headers
from server.schemas.rerank import SURFACE, RerankRequest, parse_rerank

router = APIRouter(route_class=Described, tags=["vectors and scores"])


@router.post(SURFACE.path, responses=answers(Ranking))
async def rerank(
    request: Request, app: App, asked: Annotated[RerankRequest, Depends(parsed(SURFACE, parse_rerank))]
) -> Response:
    """The best documents first, each with a score of 0..1."""
    model = app.model(asked.model)
    check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
    model.refuse_other_kind(RERANK)
    longest = max(asked.documents, key=len)
    if model.tokens_cover_text:
        app.refuse_too_long(
            model, len(asked.query) + len(longest), param="documents", noun="query and longest document"
        )
    answer_id = new_id("rank-")
    done = await answered(
        request,
        app,
        model,
        asked.jobs(answer_id),
        n_rows=len(asked.documents),
        priority=asked.priority,
        keep_alive_s=asked.keep_alive,
    )
    body = ranking_body(
        done.rows.numbers(),
        asked.documents if asked.return_documents else None,
        answer_id=answer_id,
        model=model.name,
        n_tokens=done.n_tokens,
        top_n=asked.top_n,
    )
    headers = {**served_headers(model, asked.ignored), **done.headers}
    return Response(body, media_type="application/json", headers=headers)
