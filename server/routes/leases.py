"""`/v1/memory/lease`: memory of the budget, lent to other programs of the machine for a while."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ApiError, clip, draining
from server.output.frame import to_json
from server.output.model_shapes import LeaseEnded, LeaseList
from server.pool.leases import LeaseRefusedError, LeaseStatus
from server.routes.dependencies import App, parsed, require_operator
from server.routes.described import Described, answers
from server.routes.running import while_connected
from server.schemas.leases import RENEWAL, SURFACE, LeaseRequest, RenewRequest, parse_lease, parse_renewal


async def _may_lend(request: Request, app: App) -> None:
    """Who may take memory from models. Raises ApiError 403."""
    require_operator(request, app, "Lending memory", "Lending memory")


router = APIRouter(route_class=Described, tags=["models"], dependencies=[Depends(_may_lend)])


@router.post(SURFACE.path, responses=answers(LeaseStatus))
async def lend(
    request: Request, app: App, asked: Annotated[LeaseRequest, Depends(parsed(SURFACE, parse_lease))]
) -> Response:
    """Idle models leave where that makes the room; a refusal has the sums.

    A client that hangs up meanwhile gets no lease: no one would give it back.
    """
    if app.pool.draining:
        raise draining()
    if not app.pool.started:
        raise ApiError(503, "The server is starting.", type="server_error", code="not_ready")
    try:
        lending = app.pool.leases.lend(asked.bytes, seconds=asked.seconds, name=asked.name)
        return _json(await while_connected(request, lending))
    except LeaseRefusedError as why:
        raise ApiError(409, str(why), param="bytes", code="cannot_lend", headers={"x-should-retry": "false"}) from None


@router.get(SURFACE.path, responses=answers(LeaseList))
async def list_leases(app: App) -> Response:
    """What is lent now."""
    return _json({"object": "list", "data": app.pool.leases.all})


@router.post(RENEWAL.path, responses=answers(LeaseStatus))
async def renew(
    request: Request, app: App, asked: Annotated[RenewRequest, Depends(parsed(RENEWAL, parse_renewal))]
) -> Response:
    """It holds so long from now on."""
    try:
        return _json(app.pool.leases.renew(request.path_params["id"], asked.seconds))
    except KeyError:
        raise _no_such(request) from None


@router.delete(RENEWAL.path, responses=answers(LeaseEnded))
async def give_back(request: Request, app: App) -> Response:
    """Give the memory back; models that wait for it load."""
    lease_id = request.path_params["id"]
    try:
        app.pool.leases.end(lease_id)
    except KeyError:
        raise _no_such(request) from None
    ended: LeaseEnded = {"id": lease_id, "object": "memory.lease", "ended": True}
    return _json(ended)


def _no_such(request: Request) -> ApiError:
    told = f"There is no lease '{clip(request.path_params['id'])}': it was given back, or its time is over."
    return ApiError(404, told, param="id", code="lease_not_found")


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
