"""`POST /v1/rerank`: documents in the order in which they answer a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from backends.kinds import RERANK
from server.output.ranking import ranking_body
from server.routes.rights import check_wishes
from server.routes.rows import answered
from server.routes.services import new_id, served_headers, services
from server.schemas.body import read_as
from server.schemas.rerank import parse_rerank

if TYPE_CHECKING:
    from starlette.requests import Request


async def rerank(request: Request) -> Response:
    """The best documents first, each with a score of 0..1."""
    app = services(request)
    asked = await read_as(request, parse_rerank)
    entry = app.entry(asked.model)
    check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
    app.refuse_other_kind(entry, RERANK)
    longest = max(asked.documents, key=len)
    if app.tokens_cover_text(entry):
        app.refuse_too_long(
            entry, len(asked.query) + len(longest), param="documents", noun="query and longest document"
        )
    answer_id = new_id("rank-")
    done = await answered(
        request,
        app,
        entry,
        asked.jobs(answer_id),
        n_rows=len(asked.documents),
        priority=asked.priority,
        keep_alive_s=asked.keep_alive,
    )
    body = ranking_body(
        done.rows.numbers(),
        asked.documents if asked.return_documents else None,
        answer_id=answer_id,
        model=entry.name,
        n_tokens=done.n_tokens,
        top_n=asked.top_n,
    )
    headers = {**served_headers(entry, asked.ignored), **done.headers}
    return Response(body, media_type="application/json", headers=headers)
