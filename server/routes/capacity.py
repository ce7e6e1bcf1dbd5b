"""`GET /v1/capacity`: the plan of a load without the load. Never loads, wakes or keeps a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema
from starlette.responses import Response

from backends.backend import HeaderError
from backends.kv_types import WORDS, kv_types_of
from backends.machine.crash_reason import clean
from backends.registry import BACKENDS
from server.errors import ApiError
from server.memory.capacity import Capacity, WishChange
from server.output.frame import to_json
from server.routes.dependencies import App, StrictQuery, Whole
from server.routes.described import Described, answers
from server.routes.services import Services
from server.schemas.problems import problem

router = APIRouter(route_class=Described, tags=["models"])


@dataclass(frozen=True)
class KvTypeWord:
    """A type of the KV cache, or one of keys and one of values."""

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._word)

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "description": WORDS}

    def _word(self, text: str) -> str:
        try:
            return kv_types_of(text)
        except ValueError:
            raise problem("invalid_value", "Invalid '{param}': {told} is expected.", told=WORDS) from None


class CapacityQuery(BaseModel):
    """A load, as far as it shall differ from the configuration."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    context: Annotated[int | None, Whole(8, 2**31 - 1)] = None
    parallel: Annotated[int | None, Whole(1, 256)] = None
    kv_type: Annotated[str | None, KvTypeWord()] = None
    expert_layers: Annotated[int | None, Whole(0, 10_000)] = None
    ffn_layers: Annotated[int | None, Whole(0, 10_000)] = None


@router.get("/v1/capacity", responses=answers(Capacity))
async def capacity(app: App, query: Annotated[CapacityQuery, Depends(StrictQuery(CapacityQuery))]) -> Response:
    """What a load would take, and which models would be evicted."""
    entry = app.model(query.model).entry
    asked = WishChange(**query.model_dump(exclude={"model"}))
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
    except HeaderError as why_not:
        if asked.options and (told := await _refusal(app, entry.name, asked.options, str(why_not))) is not None:
            raise told from None
        raise ApiError(
            503,
            f"The model '{entry.name}' cannot be looked at: {clean(str(why_not))}",
            type="server_error",
            code="load_failed",
        ) from None
    return Response(to_json(answer), media_type="application/json")


async def _refusal(app: Services, name: str, asked: Mapping[str, int], why: str) -> ApiError | None:
    """The error of a query that asks for layers the model has not; None where the model itself is at fault."""
    await app.pool.look(name)
    if app.pool.info(name).unusable is not None:
        return None
    return ApiError(400, f"This cannot be loaded: {clean(why)}", param=next(iter(asked)), code="invalid_value")
