"""`GET /v1/capacity`: the plan of a load without the load. Never loads, wakes or keeps a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from starlette.responses import Response

from backends.footprint import HeaderError
from backends.messages import KvType
from server.errors import ApiError
from server.memory.capacity import Asked
from server.output.frame import to_json
from server.routes.services import services

if TYPE_CHECKING:
    from starlette.requests import Request

_LARGEST = 2**31 - 1
_MOST_PARALLEL = 256
_KNOWN = ("model", "context", "parallel", "kv_type")


async def capacity(request: Request) -> Response:
    """What a load of `model` would take and who would leave for it."""
    app = services(request)
    query = request.query_params
    if unknown := [key for key in query if key not in _KNOWN]:
        raise ApiError(
            400, f"Unknown query parameter: '{unknown[0][:80]}'.", param=unknown[0][:80], code="unknown_parameter"
        )
    entry = app.entry(query.get("model"))
    asked = Asked(
        context=_count(query.get("context"), "context", 8, _LARGEST),
        parallel=_count(query.get("parallel"), "parallel", 1, _MOST_PARALLEL),
        kv_type=_kv_type(query.get("kv_type")),
    )
    try:
        answer = await app.pool.capacity(entry.name, asked)
    except HeaderError as problem:
        raise ApiError(
            503, f"The model '{entry.name}' cannot be looked at: {problem}", type="server_error", code="load_failed"
        ) from None
    return Response(to_json(answer), media_type="application/json")


def _count(text: str | None, param: str, least: int, most: int) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 12 and least <= int(text) <= most):
        raise ApiError(
            400, f"Invalid '{param}': a number from {least} to {most} is expected.", param=param, code="invalid_value"
        )
    return int(text)


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
