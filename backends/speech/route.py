"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: a form with a recording, answered by what is said."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from backends.messages import Event, Failed, Finished
from backends.speech.kind import TRANSCRIBE, TRANSLATION, Heard, Pauses, Segments, Task, Transcribe
from backends.speech.transcript import (
    MEDIA,
    PLAIN,
    Format,
    TextDelta,
    TextDone,
    Transcript,
    Transcription,
    VerboseTranscription,
)
from server.door.forms import Form, receive
from server.errors import ApiError, unsupported_parameter
from server.output.frame import Comments
from server.routes.answering import run_headers
from server.routes.dependencies import App
from server.routes.described import Described, answers
from server.routes.parts import events
from server.routes.running import Run, started_in_time, while_connected
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.sse import StreamedAnswer
from server.schemas.problems import check

router = APIRouter(route_class=Described, tags=["audio"])

_LISTS: Final = ("timestamp_granularities", "include", "keywords", "languages", "known_speaker_names")
_ENGLISH: Final = ("en", "english")
_REFUSED: Final = {
    "include": "has no effect on Whisper, which gives no log-probabilities of tokens.",
    "keywords": "is for other models; 'prompt' takes words to listen for.",
    "languages": "is for other models; 'language' takes one.",
    "known_speaker_names": "needs a model that tells speakers apart.",
    "known_speaker_references": "needs a model that tells speakers apart.",
}


class _Pauses(BaseModel):
    """`chunking_strategy` as an object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Field(ge=0, le=10_000)] = 300
    silence_duration_ms: Annotated[int, Field(ge=0, le=10_000)] = 200


class _Asked(BaseModel):
    """The fields of both routes that are no file; numbers and switches come as text."""

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str | None = None
    language: Annotated[str, Field(max_length=40)] | None = None
    prompt: Annotated[str, Field(max_length=100_000)] = ""
    response_format: Format = "json"
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    timestamp_granularities: list[Literal["word", "segment"]] = []
    stream: bool = False
    chunking_strategy: str | None = None


def _body(*names: str) -> dict[str, Any]:
    """How the form is described; the model's own schema has the types of its fields."""
    schema = _Asked.model_json_schema()["properties"]
    fields = {"file": {"type": "string", "format": "binary"}, **{name: schema[name] for name in names}}
    form = {"type": "object", "required": ["file"], "properties": fields}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


@dataclass(frozen=True)
class _Order:
    """A checked request."""

    job: Transcribe
    form: Format
    granularities: tuple[str, ...]
    streamed: bool


@router.post(
    "/v1/audio/transcriptions",
    responses=answers(Transcription | VerboseTranscription, stream=TextDelta | TextDone),
    openapi_extra=_body(*_Asked.model_fields),
)
async def transcriptions(request: Request, app: App) -> Response:
    """Write down what is said in a recording.

    A form with `file` and the fields of OpenAI's route: `language`, `prompt`, `response_format`, `temperature`,
    `timestamp_granularities[]`, `stream`, `chunking_strategy`.
    """
    return await _answered(request, app, "transcribe")


@router.post(
    "/v1/audio/translations",
    responses=answers(Transcription | VerboseTranscription, stream=TextDelta | TextDone),
    openapi_extra=_body("model", "prompt", "response_format", "temperature", "stream"),
)
async def translations(request: Request, app: App) -> Response:
    """Write down in English what is said in a recording in another language.

    A form with `file` and the fields of OpenAI's route: `prompt`, `response_format`, `temperature`; and `stream`.
    """
    return await _answered(request, app, "translate")


async def _answered(request: Request, app: Services, task: Task) -> Response:
    async with AsyncExitStack() as upload:
        form = await upload.enter_async_context(receive(request, app.spool, TRANSCRIBE.limits))
        asked = _asked(form)
        model = await app.looked_at(app.model(asked.model))
        model.refuse_other_kind(TRANSCRIBE)
        order = _order(asked, form, task)
        _refuse_languages(model, order)
        run = Run([app.pool.submit(model.entry, order.job)], 1, TRANSCRIBE.params)
        headers = served_headers(model, asked.model_extra or {})
        try:
            if not order.streamed:
                return await _whole(request, run, order, headers)
            started = await started_in_time(request, run, patience_s=app.settings.server.sse_keepalive_s)
            return _Streamed(app, run, order, {**headers, **run_headers(run, started)}, upload.pop_all())
        except BaseException:
            run.cancel()
            raise


def _asked(form: Form) -> _Asked:
    """The form's fields, each once but for lists, which clients also write as `name[]`. Raises ApiError 400."""
    data: dict[str, Any] = {}
    for name in form.fields:
        plain = name.removesuffix("[]")
        if plain in _LISTS:
            data.setdefault(plain, []).extend(form.fields[name])
        elif (text := form.text(name)) is not None and (text or name not in ("language", "response_format", "stream")):
            data[plain] = text
    for name, why in _REFUSED.items():
        if data.get(name):
            raise unsupported_parameter(name, why)
    return check(_Asked, data)


def _order(asked: _Asked, form: Form, task: Task) -> _Order:
    """Raises ApiError 400 for what contradicts itself."""
    granularities = tuple(asked.timestamp_granularities)
    if granularities and asked.response_format != "verbose_json":
        told = "timestamp_granularities need response_format 'verbose_json'."
        raise ApiError(400, told, param="timestamp_granularities", code="invalid_value")
    if asked.stream and asked.response_format == "verbose_json":
        told = "stream gives text or subtitles as they come, and no verbose_json. hint: response_format json"
        raise ApiError(400, told, param="stream", code="invalid_value")
    if task == "translate" and (granularities or asked.language not in (None, *_ENGLISH)):
        raise unsupported_parameter(
            "timestamp_granularities" if granularities else "language", "is for transcriptions."
        )
    job = Transcribe(
        new_id("audio-"),
        form.file("file"),
        task,
        language=asked.language if task == "transcribe" else None,
        prompt=asked.prompt,
        temperature=asked.temperature,
        words="word" in granularities,
        pauses=_pauses(asked.chunking_strategy),
    )
    return _Order(job, asked.response_format, granularities or ("segment",), asked.stream)


def _pauses(given: str | None) -> Pauses:
    """Raises ApiError 400."""
    if given is None or given in ("", "auto"):
        return Pauses()
    try:
        data = msgspec.json.decode(given, type=dict[str, Any])
    except msgspec.DecodeError:
        told = "Invalid 'chunking_strategy': expected 'auto' or an object of type 'server_vad'."
        raise ApiError(400, told, param="chunking_strategy", code="invalid_value") from None
    found = check(_Pauses, data)
    return Pauses(found.threshold, found.prefix_padding_ms, found.silence_duration_ms)


def _refuse_languages(model: ModelFacts, order: _Order) -> None:
    """What a model of English alone cannot do, before any load. Raises ApiError 400."""
    if not model.capabilities or TRANSLATION in model.capabilities:
        return
    job = order.job
    if job.task == "translate":
        told = f"The model '{model.name}' hears English alone, so it translates nothing. hint: a multilingual Whisper"
        raise ApiError(400, told, param="model", code="invalid_value")
    if job.language is not None and job.language.strip().lower() not in _ENGLISH:
        told = f"The model '{model.name}' hears English alone. hint: leave language out, or name a multilingual Whisper"
        raise ApiError(400, told, param="language", code="invalid_value")


async def _whole(request: Request, run: Run, order: _Order, headers: dict[str, str]) -> Response:
    transcript = Transcript(order.job.task)

    async def work() -> Response:
        started = await run.started()
        async for event in run.streams[0]:
            match event:
                case Segments():
                    transcript.add(event.segments)
                case Heard():
                    transcript.heard = event
                case Failed():
                    raise run.problem(event)
                case _:
                    pass
        body = transcript.body(order.form, order.granularities)
        return Response(body, media_type=MEDIA.get(order.form, PLAIN), headers={**headers, **run_headers(run, started)})

    return await while_connected(request, work())


class _Streamed(StreamedAnswer):
    """Text as it comes; the upload is there until its end."""

    def __init__(self, app: Services, run: Run, order: _Order, headers: dict[str, str], upload: AsyncExitStack) -> None:
        super().__init__(
            events(run, _telling(order)),
            run,
            headers=headers,
            keepalive_s=app.settings.server.sse_keepalive_s,
            keep_alive=Comments().keep_alive,
        )
        self._upload = upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and let go of the file."""
        async with self._upload:
            await super().__call__(scope, receive, send)


def _telling(order: _Order) -> Callable[[Event], TextDelta | TextDone | None]:
    """Each delta is a piece of the document that was asked for: text, or subtitles."""
    transcript, form = Transcript(order.job.task), order.form

    def told(event: Event) -> TextDelta | TextDone | None:
        match event:
            case Segments():
                text = transcript.add(event.segments, form)
                return TextDelta(text) if text else None
            case Finished():
                return TextDone(transcript.whole(form), transcript.usage(event))
            case _:
                return None

    return told
