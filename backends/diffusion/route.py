"""`POST /v1/images/generations`, `/edits`, `/variations`: images whole, by address, or as events on their way."""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Depends
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backends.diffusion.header import DrawHeader
from backends.diffusion.kind import (
    DRAW,
    MAX_CHARS,
    MAX_IMAGES,
    MAX_PREVIEWS,
    MAX_STEPS,
    MOST_SCALE,
    Draw,
    ImageFormat,
    Picture,
    Preview,
    Progressed,
    size_problem,
)
from backends.diffusion.options import NamedScheduler
from backends.diffusion.shapes import (
    EditCompleted,
    EditPartial,
    ImageCompleted,
    ImageData,
    ImageInputs,
    ImagePartial,
    Images,
    ImageUsage,
)
from backends.messages import Failed, Finished
from server.door.forms import Form, receive
from server.errors import ApiError, clip, missing_parameter, unsupported_parameter
from server.output.frame import DONE, Comments, to_json
from server.routes.answering import run_headers
from server.routes.dependencies import App, check_wishes, parsed
from server.routes.described import Described, answers
from server.routes.running import Run, started_in_time, until_started, while_connected
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.sse import StreamedAnswer
from server.schemas.fields import INT64_MAX, KeepAlive, Priority
from server.schemas.problems import check, problem
from server.schemas.surface import Surface

router = APIRouter(route_class=Described, tags=["images"])

FILES: Final = "/v1/images/files/"
Quality = Literal["auto", "low", "medium", "high", "standard", "hd"]
EFFORTS: Final[dict[Quality, float]] = {"low": 0.5, "high": 1.5, "hd": 1.5}
"""How many of the configured steps a quality takes; the others take all."""
_SIZE: Final = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
MEDIA: Final[dict[str, str]] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


def _size(value: str) -> str:
    """`auto`, or two sides. What a model has room for is known later."""
    if value == "auto":
        return value
    found = _SIZE.fullmatch(value)
    if found is None:
        raise problem("invalid_value", "Invalid '{param}': expected 'auto' or a width and a height such as '512x512'.")
    if (why := size_problem(int(found[1]), int(found[2]))) is not None:
        raise problem("invalid_value", "Invalid '{param}': {why}.", why=why)
    return value


class ImageRequest(BaseModel):
    """The body of `/v1/images/generations`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: Annotated[str, AfterValidator(_size)] | None = None
    quality: Quality | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: ImageFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PREVIEWS)] | None = None
    seed: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    negative_prompt: Annotated[str, Field(max_length=MAX_CHARS)] | None = None
    short_prompt: Annotated[str, Field(max_length=MAX_CHARS)] | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)] | None = None
    scheduler: NamedScheduler | None = None
    adapter_scale: Annotated[float, Field(ge=-MOST_SCALE, le=MOST_SCALE, allow_inf_nan=False)] | None = None
    priority: Priority = None
    keep_alive: KeepAlive = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return [name for name in self.model_extra or {} if name not in SURFACE.fields]

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height; 0 and 0: the model's own."""
        found = _SIZE.fullmatch(self.size or "auto")
        return (int(found[1]), int(found[2])) if found is not None else (0, 0)

    @property
    def form(self) -> ImageFormat:
        """Of the files."""
        return self.output_format or "png"

    def jobs(self, new_id: str, adapter: str, **source: Any) -> list[Draw]:
        """One for each image; the seeds follow each other. `source` are the job's fields of an image to draw from.

        Raises ApiError 400 for what an adapter alone has.
        """
        if self.adapter_scale is not None and not adapter:
            told = "Invalid 'adapter_scale': no adapter is named. hint: 'model': 'MODEL:ADAPTER'"
            raise ApiError(400, told, param="adapter_scale", code="invalid_value")
        first = secrets.randbits(32) if self.seed is None else self.seed
        width, height = self.sides
        common = Draw(
            id=new_id,
            prompt=self.prompt,
            width=width,
            height=height,
            seed=first,
            negative_prompt=self.negative_prompt or "",
            short_prompt=self.short_prompt or "",
            steps=self.steps or 0,
            effort=EFFORTS.get(self.quality or "auto", 1.0),
            guidance=self.guidance_scale,
            scheduler=self.scheduler or "",
            format=self.form,
            quality=90 if self.output_compression is None else self.output_compression,
            previews=self.partial_images or 0,
            adapter=adapter,
            adapter_scale=1.0 if self.adapter_scale is None else self.adapter_scale,
            **source,
        )
        seeds = [(first + i) % (INT64_MAX + 1) for i in range(self.n or 1)]
        return [msgspec.structs.replace(common, id=f"{new_id}-{i}", seed=seed) for i, seed in enumerate(seeds)]


R = TypeVar("R", bound=ImageRequest)
SURFACE: Final = Surface(
    path="/v1/images/generations",
    name="Image",
    summary="Draw images",
    model=ImageRequest,
    example={"prompt": "a red circle on a blue background"},
    refused={
        "background": ("auto", "opaque"),
        **dict.fromkeys(("complexity", "frame_count", "frame_duration_ms", "svg"), ()),
    },
    no_effect={"user", "style", "moderation", "safety_identifier"},
)


class FormRequest(ImageRequest):
    """The fields of `/v1/images/edits` and `/variations` that are no file; numbers and switches come as text."""

    model_config = ConfigDict(strict=False, extra="allow", frozen=True)

    prompt: Annotated[str, Field(max_length=MAX_CHARS)] = ""
    strength: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None


def parse(data: dict[str, Any]) -> ImageRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return _consistent(check(ImageRequest, data))


def parse_form(form: Form, *, needs_prompt: bool) -> FormRequest:
    """The checked fields of a form. Raises ApiError 400."""
    data = {name: text for name in form.fields if (text := form.text(name))}
    SURFACE.refuse(data)
    if (fidelity := data.pop("input_fidelity", None)) not in (None, "low"):
        told = f"is not supported by this server; 'strength' says how much is drawn anew. ('{clip(fidelity)}' was sent)"
        raise unsupported_parameter("input_fidelity", told)
    if needs_prompt and not data.get("prompt"):
        raise missing_parameter("prompt")
    return _consistent(check(FormRequest, data))


def _consistent(asked: R) -> R:
    """Raises ApiError 400 for what contradicts itself."""
    if asked.stream and (asked.n or 1) > 1:
        told = "Invalid 'n': events do not say which image they are of, so a stream has one. hint: leave 'stream' out"
        raise ApiError(400, told, param="n", code="invalid_value")
    if asked.stream and asked.response_format == "url":
        told = "Invalid 'response_format': a stream's events hold the images themselves. hint: leave it out"
        raise ApiError(400, told, param="response_format", code="invalid_value")
    if asked.partial_images and not asked.stream:
        told = "Invalid 'partial_images': only a stream has them. hint: 'stream': true"
        raise ApiError(400, told, param="partial_images", code="invalid_value")
    if asked.output_compression is not None and asked.form == "png":
        told = "Invalid 'output_compression': a png loses nothing. hint: 'output_format': 'jpeg' or 'webp'"
        raise ApiError(400, told, param="output_compression", code="invalid_value")
    return asked


_QUALITIES: Final[dict[str, Literal["low", "medium", "high"]]] = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "hd": "high",
}


@dataclass(frozen=True)
class Drawn:
    """One job's answer."""

    picture: Picture
    usage: Finished


@router.post(SURFACE.path, responses=answers(Images, stream=ImagePartial | ImageCompleted))
async def generations(
    request: Request, app: App, asked: Annotated[ImageRequest, Depends(parsed(SURFACE, parse))]
) -> Response:
    """Draw images; with `stream` previews come on the way, and comments tell how far it is."""
    return await _answered(request, app, asked, {}, AsyncExitStack())


def _body(*fields: str) -> dict[str, Any]:
    """How a form is described; the model's own schema has the types of its fields."""
    schema = FormRequest.model_json_schema()["properties"]
    files = {
        name: {"type": "string", "format": "binary"} for name in ("image", *(["mask"] if "prompt" in fields else []))
    }
    properties = {**files, **{name: schema[name] for name in fields}}
    form = {"type": "object", "required": ["image"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


@router.post(
    DRAW.paths[1],
    responses=answers(Images, stream=EditPartial | EditCompleted),
    openapi_extra=_body(*FormRequest.model_fields),
)
async def edits(request: Request, app: App) -> Response:
    """Draw an image anew, by a prompt.

    A form with `image`, where wanted a `mask` of the same size that is transparent where the image may change, and the
    fields of `/v1/images/generations`. `strength` says how much is drawn anew: 0.75, within a mask 1.
    """
    return await _from_form(request, app, is_edit=True)


@router.post(
    DRAW.paths[2],
    responses=answers(Images),
    openapi_extra=_body(
        *(name for name in FormRequest.model_fields if name not in ("prompt", "stream", "partial_images"))
    ),
)
async def variations(request: Request, app: App) -> Response:
    """Draw an image anew without a prompt; `strength` says how much of it: 0.5."""
    return await _from_form(request, app, is_edit=False)


async def _from_form(request: Request, app: Services, *, is_edit: bool) -> Response:
    async with AsyncExitStack() as upload:
        form = await upload.enter_async_context(receive(request, app.spool, DRAW.limits))
        asked = parse_form(form, needs_prompt=is_edit)
        if not is_edit and (asked.prompt or asked.stream or "mask" in form.files):
            told = "Variations take an image alone, and no prompt, mask or stream. hint: /v1/images/edits"
            raise ApiError(400, told, param="prompt" if asked.prompt else "stream" if asked.stream else "mask")
        image = form.file("image[]" if "image[]" in form.files else "image")
        mask = form.files.get("mask")
        strength = asked.strength or ((1.0 if mask is not None else 0.75) if is_edit else 0.5)
        source = {"image": image, "mask": mask, "whole": not is_edit, "strength": strength}
        return await _answered(request, app, asked, source, upload.pop_all())


async def _answered(
    request: Request, app: Services, asked: ImageRequest, source: dict[str, Any], upload: AsyncExitStack
) -> Response:
    """The answer; `source` is what it is drawn from, and what was uploaded is there until its end."""
    async with AsyncExitStack() as until_answered:
        await until_answered.enter_async_context(upload)
        model = await app.looked_at(_named(app, asked.model))
        check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
        model.refuse_other_kind(DRAW)
        model.refuse_bad_adapter()
        refuse_large(model, asked)
        jobs = asked.jobs(new_id("image-"), model.adapter, **source)
        streams = [
            app.pool.submit(model.entry, job, priority=asked.priority or 0, keep_alive_s=asked.keep_alive)
            for job in jobs
        ]
        run, headers = Run(streams, 1, DRAW.params), served_headers(model, asked.ignored)
        try:
            if asked.stream:
                started = await started_in_time(request, run, patience_s=app.settings.server.sse_keepalive_s)
                told = {**headers, **run_headers(run, started)}
                return _Events(app, run, jobs[0], asked, told, until_answered.pop_all())
            started = await while_connected(request, run.started())
            drawn = await while_connected(request, _all(run))
            body = to_json(_answer(request, app, asked, jobs, drawn))
            return Response(body, media_type="application/json", headers={**headers, **run_headers(run, started)})
        except BaseException:
            run.cancel()
            raise


def _named(app: Services, name: str | None) -> ModelFacts:
    """The model that is named; where none is, the only one that draws. Raises ApiError."""
    drawing = [model for model in drawing_models(app) if not model.adapter] if name is None else []
    return drawing[0] if len(drawing) == 1 else app.model(name)


def drawing_models(app: Services) -> list[ModelFacts]:
    """Those that draw, of those that the key of this request may use."""
    return [model for model in app.all_models() if model.entry.backend == DrawHeader.backend]


def refuse_large(model: ModelFacts, asked: ImageRequest) -> None:
    """What is known of the files, before any load. Raises ApiError 400."""
    width, height = asked.sides
    if width and isinstance(model.header, DrawHeader):
        why = size_problem(width, height, model.header.sides)
        if why is not None:
            raise ApiError(400, f"Invalid 'size': {why}.", param="size", code="invalid_value")


async def _all(run: Run) -> list[Drawn]:
    """Every image. Raises ApiError for the first that fails."""
    return [await _one(run, job) for job in range(len(run.streams))]


async def _one(run: Run, job: int) -> Drawn:
    picture: Picture | None = None
    async for event in run.streams[job]:
        match event:
            case Picture():
                picture = event
            case Failed():
                raise run.problem(event)
            case Finished() if picture is not None:
                return Drawn(picture, event)
            case _:
                pass
    raise ApiError(500, "The image was not finished.", type="server_error", code="internal_error")


def _answer(request: Request, app: Services, asked: ImageRequest, jobs: list[Draw], drawn: list[Drawn]) -> Images:
    seeds = [job.seed for job in jobs]
    data = _data(request, app, asked, list(zip(seeds, [one.picture.data for one in drawn], strict=True)))
    first = drawn[0].picture
    return Images(
        created=int(time.time()),
        data=data,
        background="opaque",
        output_format=asked.form,
        quality=_QUALITIES.get(asked.quality or ""),
        size=f"{first.width}x{first.height}",
        usage=_usage([one.usage for one in drawn]),
    )


def _data(request: Request, app: Services, asked: ImageRequest, images: list[tuple[int, bytes]]) -> list[ImageData]:
    """Of each image, given its seed and its file."""
    if asked.response_format != "url":
        return [ImageData(b64_json=base64.b64encode(image).decode(), seed=seed) for seed, image in images]
    names = [f"{new_id('img_')}.{asked.form}" for _ in images]
    files = dict(zip(names, [image for _, image in images], strict=True))
    app.images.put(files, MEDIA[asked.form], time.monotonic())
    base = f"{str(request.base_url).rstrip('/')}{FILES}"
    return [ImageData(url=base + name, seed=seed) for name, (seed, _) in zip(names, images, strict=True)]


def _usage(ended: list[Finished]) -> ImageUsage:
    heard, drawn = ended[0].prompt_tokens, sum(one.completion_tokens for one in ended)
    return ImageUsage(heard, drawn, heard + drawn, ImageInputs(heard))


async def _events(run: Run, job: Draw, asked: ImageRequest) -> AsyncIterator[bytes]:
    created, picture = int(time.time()), None
    size = f"{job.width}x{job.height}" if job.width else "auto"
    on_the_way, whole = (ImagePartial, ImageCompleted) if job.image is None else (EditPartial, EditCompleted)
    common: dict[str, Any] = {
        "created_at": created,
        "quality": _QUALITIES.get(asked.quality or "", "auto"),
        "output_format": asked.form,
    }
    try:
        async for sign in until_started(run, Comments()):
            yield sign
        async for event in run.streams[0]:
            match event:
                case Progressed():
                    yield f": step {event.step}/{event.steps}\n\n".encode()
                case Preview():
                    data = base64.b64encode(event.data).decode()
                    yield _frame(on_the_way(b64_json=data, size=size, partial_image_index=event.index, **common))
                case Picture():
                    picture = event
                case Finished() if picture is not None:
                    data = base64.b64encode(picture.data).decode()
                    size = f"{picture.width}x{picture.height}"
                    usage = _usage([event])
                    yield _frame(whole(b64_json=data, size=size, usage=usage, seed=job.seed, **common))
                    yield DONE
                case Failed():
                    yield Comments().error(run.problem(event))
                case _:
                    pass
    finally:
        run.cancel()


def _frame(event: ImagePartial | ImageCompleted | EditPartial | EditCompleted) -> bytes:
    return b"event: " + event.type.encode() + b"\ndata: " + to_json(event) + b"\n\n"


class _Events(StreamedAnswer):
    """Previews and the image as events; the upload is there until their end."""

    def __init__(
        self, app: Services, run: Run, job: Draw, asked: ImageRequest, headers: dict[str, str], upload: AsyncExitStack
    ) -> None:
        keepalive_s, comments = app.settings.server.sse_keepalive_s, Comments()
        body = _events(run, job, asked)
        super().__init__(body, run, headers=headers, keepalive_s=keepalive_s, keep_alive=comments.keep_alive)
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, and let go of the files."""
        async with self._upload:
            await super().__call__(scope, receive, send)


@router.get(FILES + "{id}", responses=answers({"type": "string", "format": "binary"}, media="image/png"))
async def stored_image(request: Request, app: App) -> Response:
    """An image that was asked for by its address, for an hour; needs no key, because the address cannot be guessed."""
    name = request.path_params["id"]
    found = app.images.get(name, time.monotonic())
    if found is None:
        told = f"There is no image '{clip(name)}' here (any more): addresses are good for an hour, or less where many "
        raise ApiError(404, told + "images were drawn since.", param="id", code="image_not_found")
    headers = {"x-content-type-options": "nosniff", "cache-control": "private, max-age=3600"}
    return Response(found.data, media_type=found.media_type, headers=headers)
