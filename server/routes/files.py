"""`/v1/files`: files for batches, and for training, kept in the data folder until they are deleted or expire."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from backends.kinds import Limits
from server.asker import ASKER
from server.batches.answers import DeletedFile, FileObject, FilePage, file_object
from server.door.forms import OVERHEAD_BYTES, Form, receive
from server.errors import ApiError, missing_parameter, unsupported_parameter
from server.files.folder import Page
from server.output.frame import to_json
from server.routes.dependencies import App, StrictQuery, Whole, Word
from server.routes.described import Described, answers
from server.schemas.batches import DEFAULT_LIFETIME_S, ExpiresAfter
from server.schemas.problems import check

router = APIRouter(route_class=Described, tags=["files and batches"])

PATH: Final = "/v1/files"
FILE_BYTES: Final = 512 * 2**20
UPLOAD_BYTES: Final = FILE_BYTES + OVERHEAD_BYTES
_LIMITS: Final = Limits(files=("file",), file_bytes=FILE_BYTES)
_MOST_DIGITS: Final = 15
_NESTED: Final = re.compile(r"expires_after\[(\w+)\]")


class _Upload(BaseModel):
    """The fields of the form beside the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    purpose: Literal["batch", "fine-tune", "user_data", "evals", "vision", "assistants"]


_FORM: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": _Upload.model_json_schema()["properties"]["purpose"],
                        "expires_after[anchor]": {"enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer"},
                    },
                }
            }
        },
    }
}


class FilesQuery(BaseModel):
    """Which files."""

    model_config = ConfigDict(extra="forbid")
    purpose: str | None = None
    limit: Annotated[int, Whole(1, 10_000)] = 10_000
    order: Annotated[str, Word(("asc", "desc"), "'asc' or 'desc'")] = "desc"
    after: str | None = None


def owner(request: Request) -> str:
    """Whose files and batches a request makes: keys without a name are one owner."""
    account = ASKER.get().account
    assert account is not None, request.scope["path"]
    return account.name


def seen(request: Request) -> str | None:
    """Whose files and batches a request may see; None, and all of them, for an admin."""
    return None if request.state.admin else owner(request)


@router.post(PATH, responses=answers(FileObject), openapi_extra=_FORM)
async def upload_file(request: Request, app: App) -> Response:
    """Keep a file.

    A form with `file`, `purpose` and, where it is not to stay for ever, `expires_after[anchor]` and
    `expires_after[seconds]`. Files for batches go after 30 days.
    """
    async with receive(request, app.spool, _LIMITS) as form:
        file, (purpose, lifetime_s) = form.file("file"), _asked(form)
        kept = await asyncio.to_thread(
            app.files.keep,
            Path(file.path),
            owner=owner(request),
            name=file.name or "file",
            purpose=purpose,
            lifetime_s=lifetime_s,
        )
    app.batch_runner.wake()  # it lets go of files that have had their time
    return _json(file_object(kept))


def _asked(form: Form) -> tuple[str, int | None]:
    """Purpose and lifetime. Raises ApiError 400."""
    nested = {found[1]: name for name in form.fields if (found := _NESTED.fullmatch(name))}
    for name in form.fields:
        if name != "purpose" and name not in nested.values():
            raise unsupported_parameter(name)
    if (purpose := form.text("purpose")) is None:
        raise missing_parameter("purpose")
    asked = check(_Upload, {"purpose": purpose})
    if not nested:
        return asked.purpose, DEFAULT_LIFETIME_S if purpose == "batch" else None
    fields: dict[str, Any] = {name: form.text(whole) for name, whole in nested.items()}
    seconds = str(fields.get("seconds", ""))
    if not (seconds.isascii() and seconds.isdecimal() and len(seconds) <= _MOST_DIGITS):
        raise ApiError(
            400, "Invalid 'expires_after': seconds are expected.", param="expires_after", code="invalid_value"
        )
    return asked.purpose, check(ExpiresAfter, {**fields, "seconds": int(seconds)}).seconds


@router.get(PATH, responses=answers(FilePage))
async def list_files(
    request: Request, app: App, query: Annotated[FilesQuery, Depends(StrictQuery(FilesQuery))]
) -> Response:
    """Your files, the newest first."""
    page = Page(query.limit, query.after, newest_first=query.order == "desc")
    files, has_more = await asyncio.to_thread(app.files.listed, seen(request), page, purpose=query.purpose)
    ids = (files[0].id, files[-1].id) if files else (None, None)
    found: FilePage = {
        "object": "list",
        "data": [file_object(file) for file in files],
        "first_id": ids[0],
        "last_id": ids[1],
        "has_more": has_more,
    }
    return _json(found)


@router.get(f"{PATH}/{{id}}", responses=answers(FileObject))
async def get_file(request: Request, app: App) -> Response:
    """What is known of a file."""
    return _json(file_object(await asyncio.to_thread(app.files.get, request.path_params["id"], seen(request))))


@router.delete(f"{PATH}/{{id}}", responses=answers(DeletedFile))
async def delete_file(request: Request, app: App) -> Response:
    """Delete a file. A batch that has read it goes on."""
    file_id = request.path_params["id"]
    await asyncio.to_thread(app.files.delete, file_id, seen(request))
    gone: DeletedFile = {"id": file_id, "object": "file", "deleted": True}
    return _json(gone)


@router.get(
    f"{PATH}/{{id}}/content",
    responses=answers({"type": "string", "format": "binary"}, media="application/octet-stream"),
)
async def file_content(request: Request, app: App) -> Response:
    """The contents of a file."""
    file = await asyncio.to_thread(app.files.get, request.path_params["id"], seen(request))
    path = await asyncio.to_thread(app.files.content, file)
    return FileResponse(path, media_type="application/octet-stream", filename=file.name)


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
