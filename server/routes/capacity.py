"""`GET /v1/capacity`: the plan of a load without the load. Never loads, wakes or keeps a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from starlette.responses import Response

from backends.backend import HeaderError
from backends.crash_reason import clean
from backends.messages import KvType
from backends.registry import BACKENDS
from server.errors import ApiError
from server.memory.capacity import Asked
from server.output.frame import to_json
from server.routes.query import known_parameters, whole_number
from server.routes.services import services

if TYPE_CHECKING:
    from starlette.requests import Request

_LARGEST = 2**31 - 1
_MOST_PARALLEL = 256
_KNOWN = ("model", "context", "parallel", "kv_type")


async def capacity(request: Request) -> Response:
    """What a load of `model` would take and which models would be evicted for it."""
    app = services(request)
    query = request.query_params
    known_parameters(request, *_KNOWN)
    entry = app.entry(query.get("model"))
    asked = Asked(
        context=whole_number(request, "context", least=8, most=_LARGEST),
        parallel=whole_number(request, "parallel", least=1, most=_MOST_PARALLEL),
        kv_type=_kv_type(query.get("kv_type")),
    )
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


def _kv_type(text: str | None) -> KvType | None:
    if text is None:
        return None
    for kv_type in get_args(KvType):
        if text == kv_type:
            known: KvType = kv_type
            return known
    raise ApiError(
        400,
        f"Invalid 'kv_type': one of {', '.join(get_args(KvType))} is expected.",
        param="kv_type",
        code="invalid_value",
    )
