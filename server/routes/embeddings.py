"""`POST /v1/embeddings`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.responses import Response, StreamingResponse

from backends.kinds import EMBED
from server.output.vectors import embedding_body
from server.routes.rights import check_wishes
from server.routes.rows import answered
from server.routes.services import new_id, served_headers, services
from server.schemas.body import read_as
from server.schemas.embeddings import EmbeddingRequest, parse_embedding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request

    from server.routes.services import Services
    from server.settings.catalog import CatalogEntry

_SMALL_NUMBERS: Final = 65_536
"""Up to here an answer is written at once; a larger one in slices, between which others have their turn."""


async def embeddings(request: Request) -> Response:
    """One vector per input, in their order."""
    app = services(request)
    asked = await read_as(request, parse_embedding)
    entry = app.entry(asked.model)
    check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
    app.refuse_other_kind(entry, EMBED)
    _refuse_too_long(app, entry, asked)
    done = await answered(
        request,
        app,
        entry,
        asked.jobs(new_id("embd-")),
        n_rows=len(asked.input),
        priority=asked.priority,
        keep_alive_s=asked.keep_alive,
    )
    body = embedding_body(done.rows, model=entry.name, n_tokens=done.n_tokens, as_base64=asked.as_base64)
    headers = {**served_headers(entry, asked.ignored), **done.headers}
    if done.rows.n * done.rows.dimensions <= _SMALL_NUMBERS:
        return Response(b"".join(body), media_type="application/json", headers=headers)
    return StreamingResponse(_in_turns(body), media_type="application/json", headers=headers)


def _refuse_too_long(app: Services, entry: CatalogEntry, asked: EmbeddingRequest) -> None:
    """Refuse a text whose characters alone prove that it is too long, before any load. Raises ApiError 400."""
    place = max(range(len(asked.input)), key=lambda place: len(asked.input[place]))
    longest = asked.input[place]
    if isinstance(longest, str) and app.tokens_cover_text(entry):
        app.refuse_too_long(entry, len(longest), param="input", noun=f"input[{place}]")


async def _in_turns(slices: Iterator[bytes]) -> AsyncIterator[bytes]:
    for part in slices:
        yield part
        await asyncio.sleep(0)
