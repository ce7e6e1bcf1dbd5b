"""`/v1/fine_tuning/jobs`: models taught from files, in memory that no request needs; and what they made, deleted."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from server.errors import ApiError, clip, draining
from server.files.folder import Page
from server.output.frame import to_json
from server.output.model_shapes import DeletedModel
from server.routes.dependencies import App, StrictQuery, Whole, no_fields, parsed
from server.routes.described import Described, answers
from server.routes.files import owner, seen
from server.routes.services import Services
from server.schemas.fine_tuning import SURFACE, FineTuningRequest, parse_fine_tuning
from server.settings.config import TUNED
from server.tuning.bases import untaught
from server.tuning.job import Job, JobRecord
from server.tuning.objects import (
    CheckpointPage,
    JobEventPage,
    JobObject,
    JobPage,
    checkpoint_object,
    event_object,
    job_object,
)

if TYPE_CHECKING:
    from server.routes.services import ModelFacts
    from server.tuning.store import Asked

router = APIRouter(route_class=Described, tags=["fine-tuning"])
_ONE: Final = f"{SURFACE.path}/{{id}}"
PURPOSE: Final = "fine-tune"


class JobsQuery(BaseModel):
    """Which jobs, or events of one."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Whole(1, 100)] = 20
    after: str | None = None


class CheckpointsQuery(BaseModel):
    """Which checkpoints."""

    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Whole(1, 100)] = 10
    after: str | None = None


Jobs = Annotated[JobsQuery, Depends(StrictQuery(JobsQuery))]


@router.post(SURFACE.path, responses=answers(JobObject))
async def create_job(
    request: Request, app: App, asked: Annotated[FineTuningRequest, Depends(parsed(SURFACE, parse_fine_tuning))]
) -> Response:
    """Begin a job; its files are read next, and what is wrong with them is told by the job."""
    if app.pool.draining:
        raise draining()
    model = await app.looked_at(app.model(asked.model))
    _refuse_untaught(model)
    wanted = asked.wanted()
    for file_id, param in ((asked.training_file, "training_file"), (asked.validation_file, "validation_file")):
        if file_id is not None:
            await _refuse_other_file(request, app, file_id, param)
    record = JobRecord(
        model=model.entry.name,
        training_file=asked.training_file,
        validation_file=asked.validation_file,
        created_at=int(time.time()),
        seed=secrets.randbelow(2**31) if asked.seed is None else asked.seed,
        wanted=wanted,
        suffix=asked.suffix,
        metadata=asked.metadata,
    )
    job = await asyncio.to_thread(app.tuning.create, record, owner=owner(request))
    await asyncio.to_thread(app.tuning.tell, job, f"Created fine-tuning job: {job.id}")
    app.tuning_runner.wake()
    return _told(app, job)


def _refuse_untaught(model: ModelFacts) -> None:
    """Refuse what cannot be taught, as far as that is known. Raises ApiError 400."""
    if model.adapter:
        told = f"'{model.name}' is an adapter, and a job teaches its model. hint: '{model.entry.name}'"
        raise ApiError(400, told, param="model", code="model_not_trainable")
    if model.header is None:
        told = f"The model '{model.name}' cannot be taught: {model.unusable or 'its files were not read'}"
        raise ApiError(400, told, param="model", code="model_unusable")
    if (why := untaught(model.entry.path.is_dir(), model.header.gives)) is not None:
        raise ApiError(400, f"The model '{model.name}' {why}", param="model", code="model_not_trainable")


async def _refuse_other_file(request: Request, app: Services, file_id: str, param: str) -> None:
    """Refuse a file that is not there, or is for something else. Raises ApiError 400."""
    try:
        file = await asyncio.to_thread(app.files.get, file_id, seen(request))
    except ApiError as problem:
        if problem.status != 404:
            raise
        raise ApiError(400, f"invalid {param}: {clip(file_id)}", param=param, code="invalid_file") from None
    if file.purpose != PURPOSE:
        told = (
            f"The file {file.id} was uploaded for '{file.purpose}', and a job reads one whose purpose is '{PURPOSE}'."
        )
        raise ApiError(400, told, param=param, code="invalid_value")


@router.get(SURFACE.path, responses=answers(JobPage))
async def list_jobs(request: Request, app: App, query: Jobs) -> Response:
    """Your jobs, the newest first."""
    jobs, has_more = await asyncio.to_thread(app.tuning.listed, seen(request), Page(query.limit, query.after))
    after = jobs[-1].id if has_more else None
    found: JobPage = {
        "object": "list", "data": [_object(app, job) for job in jobs], "has_more": has_more, "after": after
    }  # fmt: skip
    return _json(found)


async def _named(request: Request, app: App) -> Job:
    """The job that the path names. Raises ApiError 404."""
    return await asyncio.to_thread(app.tuning.get, request.path_params["id"], seen(request))


PathJob = Annotated[Job, Depends(_named)]


@router.get(_ONE, responses=answers(JobObject))
async def get_job(app: App, job: PathJob) -> Response:
    """What a job is at."""
    return _told(app, job)


@router.post(f"{_ONE}/cancel", dependencies=[Depends(no_fields)], responses=answers(JobObject))
async def cancel_job(app: App, job: PathJob) -> Response:
    """End a job; nothing of it is kept."""
    return await _moved(app, job, "cancelled", "The job was cancelled")


@router.post(f"{_ONE}/pause", dependencies=[Depends(no_fields)], responses=answers(JobObject))
async def pause_job(app: App, job: PathJob) -> Response:
    """Have a job save where it is, and stay there until it is resumed."""
    return await _moved(app, job, "paused", "The job was paused")


@router.post(f"{_ONE}/resume", dependencies=[Depends(no_fields)], responses=answers(JobObject))
async def resume_job(app: App, job: PathJob) -> Response:
    """Have a paused job go on."""
    return await _moved(app, job, "queued", "The job was resumed")


async def _moved(app: Services, job: Job, state: Asked, told: str) -> Response:
    """One that is in this state already stays there. Raises ApiError 409."""
    job, changed = await asyncio.to_thread(app.tuning.move, job.id, state, int(time.time()))
    if changed:
        try:
            await asyncio.to_thread(app.tuning.tell, job, told)
        finally:  # on a full disk too
            app.tuning_runner.withdraw(job)
    return _told(app, job)


@router.get(f"{_ONE}/events", responses=answers(JobEventPage))
async def list_events(app: App, job: PathJob, query: Jobs) -> Response:
    """What has happened to a job, the newest first."""
    events, has_more = await asyncio.to_thread(app.tuning.events, job, Page(query.limit, query.after))
    found: JobEventPage = {"object": "list", "data": [event_object(event) for event in events], "has_more": has_more}
    return _json(found)


@router.get(f"{_ONE}/checkpoints", responses=answers(CheckpointPage))
async def list_checkpoints(
    app: App, job: PathJob, query: Annotated[CheckpointsQuery, Depends(StrictQuery(CheckpointsQuery))]
) -> Response:
    """The checkpoints a job has saved, the newest first."""
    checkpoints, has_more = await asyncio.to_thread(app.tuning.checkpoints, job, Page(query.limit, query.after))
    data = [checkpoint_object(one, job) for one in checkpoints]
    ids = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    found: CheckpointPage = {
        "object": "list",
        "data": data,
        "first_id": ids[0],
        "last_id": ids[1],
        "has_more": has_more,
    }
    return _json(found)


@router.delete("/v1/models/{id:path}", responses=answers(DeletedModel))
async def delete_model(request: Request, app: App) -> Response:
    """Delete a model that a fine-tuning job has made, from the disk too."""
    name = request.path_params["id"]
    job = await asyncio.to_thread(app.tuning_results.find, name) if name.startswith(TUNED) else None
    if job is None:
        told = f"'{app.model(name).name}' was not made by a fine-tuning job. hint: take it out of the configuration"
        raise ApiError(400, told, param="model", code="model_not_deletable")
    if seen(request) not in (None, job.owner):
        told = f"The model '{clip(name)}' was made with another key, and that key or an admin key may delete it."
        raise ApiError(403, told, param="model", code="not_yours")
    await app.tuning_results.delete(job, name)
    gone: DeletedModel = {"id": name, "object": "model", "deleted": True}
    return _json(gone)


def _object(app: Services, job: Job) -> JobObject:
    return job_object(job, now=int(time.time()), waiting_for=app.tuning_runner.waiting_for(job))


def _told(app: Services, job: Job) -> Response:
    return _json(_object(app, job))


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
