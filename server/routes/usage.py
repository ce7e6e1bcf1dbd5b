"""`GET /v1/usage`: tokens by day, key and model. An admin key sees every key, another one itself."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from server.asker import ASKER
from server.output.frame import to_json
from server.output.model_shapes import UsageLine, UsageList
from server.routes.dependencies import App, StrictQuery, Whole
from server.routes.described import Described, answers

router = APIRouter(route_class=Described, tags=["server"])
_LONGEST_DAYS = 3660


class UsageQuery(BaseModel):
    """How far back."""

    model_config = ConfigDict(extra="forbid")
    days: Annotated[int, Whole(1, _LONGEST_DAYS)] = 1


@router.get("/v1/usage", responses=answers(UsageList))
async def usage(request: Request, app: App, query: Annotated[UsageQuery, Depends(StrictQuery(UsageQuery))]) -> Response:
    """What keys have used today and, with `days`, on the days before; days are those of UTC."""
    account = ASKER.get().account
    own = None if request.state.admin or account is None else account.name
    found: list[UsageLine] = [
        {
            "day": row.day,
            "key": row.key,
            "model": row.model,
            "jobs": row.used.jobs,
            "prompt_tokens": row.used.prompt_tokens,
            "cached_tokens": row.used.cached_tokens,
            "completion_tokens": row.used.completion_tokens,
        }
        for row in await app.usage.rows(query.days)
        if own is None or row.key == own
    ]
    body: UsageList = {"object": "list", "data": found}
    return Response(to_json(body), media_type="application/json")
