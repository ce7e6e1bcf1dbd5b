"""`POST /v1/config/reload`: the configuration once more, without a restart."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ApiError
from server.output.frame import to_json
from server.reload import Reloaded, ReloadError
from server.routes.dependencies import App, no_fields, require_operator
from server.routes.described import Described, answers

router = APIRouter(route_class=Described, tags=["server"])


async def _may_reload(request: Request, app: App) -> None:
    require_operator(request, app, "Reloading the configuration", "Reloading the configuration")


@router.post("/v1/config/reload", dependencies=[Depends(_may_reload), Depends(no_fields)], responses=answers(Reloaded))
async def reload_config(app: App) -> Response:
    """Read the configuration again and take it over: models are added, changed and removed while streams go on.

    What is wrong with it is a 400, and nothing has changed.
    """
    try:
        told = await app.reloader.reload("request")
    except ReloadError as problem:
        raise ApiError(
            400, f"The configuration was not taken over. {problem}", code="invalid_configuration", headers=_NO_RETRY
        ) from None
    return Response(to_json(told), media_type="application/json")


_NO_RETRY = {"x-should-retry": "false"}
