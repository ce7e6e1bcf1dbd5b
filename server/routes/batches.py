"""`/v1/batches`: requests of a file, run while the server has nothing else to do, answered in another file."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from server.batches.answers import BatchObject, BatchPage, batch_object
from server.batches.records import Batch, BatchRecord
from server.errors import ApiError
from server.files.folder import Page
from server.output.frame import to_json
from server.routes.dependencies import App, StrictQuery, Whole, no_fields, parsed
from server.routes.described import Described, answers
from server.routes.files import owner, seen
from server.routes.services import Services
from server.schemas.batches import SURFACE, BatchRequest, parse_batch

router = APIRouter(route_class=Described, tags=["files and batches"])


class BatchesQuery(BaseModel):
    """Which batches."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Whole(1, 100)] = 20
    after: str | None = None


@router.post(SURFACE.path, responses=answers(BatchObject))
async def create_batch(
    request: Request, app: App, asked: Annotated[BatchRequest, Depends(parsed(SURFACE, parse_batch))]
) -> Response:
    """Begin a batch; its file is read next, and what is wrong with it is told by the batch."""
    window_s = asked.window_s
    file = await asyncio.to_thread(app.files.get, asked.input_file_id, seen(request))
    if file.purpose != "batch":
        told = f"The file {file.id} was uploaded for '{file.purpose}', and a batch reads one whose purpose is 'batch'."
        raise ApiError(400, told, param="input_file_id", code="invalid_value")
    record = BatchRecord(
        endpoint=asked.endpoint,
        input_file_id=file.id,
        completion_window=asked.completion_window,
        created_at=int(time.time()),
        metadata=asked.metadata,
        output_lifetime_s=None if asked.output_expires_after is None else asked.output_expires_after.seconds,
    )
    batch = await asyncio.to_thread(app.batches.create, record, owner=owner(request), window_s=window_s)
    app.batch_runner.wake()
    return await _told(app, batch)


@router.get(SURFACE.path, responses=answers(BatchPage))
async def list_batches(
    request: Request, app: App, query: Annotated[BatchesQuery, Depends(StrictQuery(BatchesQuery))]
) -> Response:
    """Your batches, the newest first."""
    batches, has_more = await asyncio.to_thread(app.batches.listed, seen(request), Page(query.limit, query.after))
    data = [batch_object(batch, await asyncio.to_thread(app.batches.counts, batch)) for batch in batches]
    ids = (batches[0].id, batches[-1].id) if batches else (None, None)
    found: BatchPage = {"object": "list", "data": data, "first_id": ids[0], "last_id": ids[1], "has_more": has_more}
    return _json(found)


@router.get(f"{SURFACE.path}/{{id}}", responses=answers(BatchObject))
async def get_batch(request: Request, app: App) -> Response:
    """What a batch is at."""
    return await _told(app, await asyncio.to_thread(app.batches.get, request.path_params["id"], seen(request)))


@router.post(f"{SURFACE.path}/{{id}}/cancel", dependencies=[Depends(no_fields)], responses=answers(BatchObject))
async def cancel_batch(request: Request, app: App) -> Response:
    """Begin no line more; those that were answered are in its files, which are there in a moment."""
    batch = await asyncio.to_thread(app.batches.cancel, request.path_params["id"], seen(request))
    app.batch_runner.wake()
    return await _told(app, batch)


async def _told(app: Services, batch: Batch) -> Response:
    return _json(batch_object(batch, await asyncio.to_thread(app.batches.counts, batch)))


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
