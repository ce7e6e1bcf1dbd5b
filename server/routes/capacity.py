"""`GET /v1/capacity`: the plan of a load without the load. Never loads, wakes or keeps a model."""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from backends.backend import HeaderError
from backends.machine.crash_reason import clean
from backends.messages import KvType
from backends.registry import BACKENDS
from server.errors import ApiError
from server.memory.capacity import Capacity, WishChange
from server.output.frame import to_json
from server.routes.dependencies import App, StrictQuery, Whole, Word
from server.routes.described import Described, answers

router = APIRouter(route_class=Described, tags=["models"])
_KV_TYPES = get_args(KvType)


class CapacityQuery(BaseModel):
    """A load, as far as it shall differ from the configuration."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    context: Annotated[int | None, Whole(8, 2**31 - 1)] = None
    parallel: Annotated[int | None, Whole(1, 256)] = None
    kv_type: Annotated[KvType | None, Word(_KV_TYPES, f"one of {', '.join(_KV_TYPES)}")] = None


@router.get("/v1/capacity", responses=answers(Capacity))
async def capacity(app: App, query: Annotated[CapacityQuery, Depends(StrictQuery(CapacityQuery))]) -> Response:
    """What a load would take, and which models would be evicted."""
    entry = app.model(query.model).entry
    asked = WishChange(context=query.context, parallel=query.parallel, kv_type=query.kv_type)
    backend = BACKENDS[entry.backend]
    if asked.kv_type is not None and (why := backend.refuses.get("kv_type")):
        raise ApiError(
            400,
            f"Invalid 'kv_type': '{entry.name}' is {backend.files}, {why}.",
            param="kv_type",
            code="invalid_value",
        )
    try:
        answer = await app.pool.capacity(entry.name, asked)
    except HeaderError as problem:
        raise ApiError(
            503,
            f"The model '{entry.name}' cannot be looked at: {clean(str(problem))}",
            type="server_error",
            code="load_failed",
        ) from None
    return Response(to_json(answer), media_type="application/json")
