"""`POST /v1/audio/speech`: a text as sound, a piece at a time, and `GET /v1/audio/voices`: who can say it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Depends
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from backends.messages import Event, Failed, Finished
from backends.voice.header import VoiceHeader
from backends.voice.kind import MAX_CHARS, SPEAK, Sound, SoundFormat, Speak, no_such_voice
from server.errors import ApiError
from server.output.frame import Comments, to_json
from server.routes.answering import run_headers
from server.routes.dependencies import App, check_wishes, parsed
from server.routes.described import Described, answers
from server.routes.parts import events
from server.routes.running import Run, started_in_time, while_connected
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.sse import StreamedAnswer
from server.schemas.fields import KeepAlive, Priority
from server.schemas.problems import check, wrong_type
from server.schemas.surface import Surface

router = APIRouter(route_class=Described, tags=["audio"])

_MEDIA: Final = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}


def _named(value: Any) -> Any:
    """A voice by its name, or as OpenAI's object with an `id`."""
    if isinstance(value, dict) and isinstance(value.get("id"), str):
        return value["id"]
    if not isinstance(value, str):
        raise wrong_type("a string or an object with an 'id'", value)
    return value


class SpeechRequest(BaseModel):
    """The body of `/v1/audio/speech`."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    model: str
    input: Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
    voice: Annotated[str, BeforeValidator(_named, json_schema_input_type=str | dict[str, Any])]
    response_format: SoundFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4, allow_inf_nan=False)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    priority: Priority = None
    keep_alive: KeepAlive = None

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return [name for name in self.model_extra or {} if name not in SURFACE.fields]


SURFACE: Final = Surface(
    path="/v1/audio/speech",
    name="Speech",
    summary="Say a text",
    model=SpeechRequest,
    example={"input": "The quick brown fox jumps over the lazy dog.", "voice": "heart"},
    refused={"instructions": ("",)},
    no_effect={"user"},
)


def parse(data: dict[str, Any]) -> SpeechRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(SpeechRequest, data)


class SoundDelta(msgspec.Struct, frozen=True):
    """More of the file, in base64."""

    audio: str
    type: Literal["speech.audio.delta"] = "speech.audio.delta"


class SoundUsage(msgspec.Struct, frozen=True):
    """Phonemes that were read, and frames of 12.5 ms that were said."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class SoundDone(msgspec.Struct, frozen=True):
    """The end of a streamed speech."""

    usage: SoundUsage
    type: Literal["speech.audio.done"] = "speech.audio.done"


class VoiceEntry(msgspec.Struct, frozen=True):
    """One voice of one model."""

    id: str
    name: str
    model: str


class SpeakingModel(msgspec.Struct, frozen=True):
    """A model that speaks."""

    id: str


class SpeakingModels(msgspec.Struct, frozen=True):
    """All of them."""

    models: list[SpeakingModel]


class VoiceList(msgspec.Struct, frozen=True):
    """All voices of all models that speak."""

    voices: list[VoiceEntry]


@router.post(
    SURFACE.path,
    responses=answers({"type": "string", "format": "binary"}, stream=SoundDelta | SoundDone, media="audio/mpeg"),
)
async def speech(
    request: Request, app: App, asked: Annotated[SpeechRequest, Depends(parsed(SURFACE, parse))]
) -> Response:
    """Say a text; sound comes as it is made, as a file or as events."""
    model = await app.looked_at(app.model(asked.model))
    check_wishes(request, priority=asked.priority, keep_alive_s=asked.keep_alive)
    model.refuse_other_kind(SPEAK)
    _refuse_unknown_voice(model, asked.voice)
    job = Speak(new_id("speech-"), asked.input, asked.voice, asked.response_format, asked.speed)
    stream = app.pool.submit(model.entry, job, priority=asked.priority or 0, keep_alive_s=asked.keep_alive)
    run = Run([stream], 1, SPEAK.params)
    headers = served_headers(model, asked.ignored)
    try:
        if asked.stream_format == "sse":
            started = await started_in_time(request, run, patience_s=app.settings.server.sse_keepalive_s)
            return _Events(app, run, {**headers, **run_headers(run, started)})
        started = await while_connected(request, run.started())
        first = await while_connected(request, _sound(run))
        return _File(app, run, first, {**headers, **run_headers(run, started)}, _MEDIA[asked.response_format])
    except BaseException:
        run.cancel()
        raise


@router.get("/v1/audio/voices", responses=answers(VoiceList))
async def voices(app: App) -> Response:
    """The voices that `/v1/audio/speech` takes, by model."""
    found = [
        VoiceEntry(name, name, model.name)
        for model in [await app.looked_at(model) for model in _speaking(app)]
        if isinstance(model.header, VoiceHeader)
        for name in model.header.names
    ]
    return Response(to_json(VoiceList(found)), media_type="application/json")


@router.get("/v1/audio/models", responses=answers(SpeakingModels))
async def speaking_models(app: App) -> Response:
    """The models that `/v1/audio/speech` takes, as Open WebUI looks for them."""
    found = [SpeakingModel(model.name) for model in _speaking(app)]
    return Response(to_json(SpeakingModels(found)), media_type="application/json")


def _speaking(app: Services) -> list[ModelFacts]:
    """The models whose files are voices."""
    return [app.facts(entry) for entry in app.catalog.entries if entry.backend == VoiceHeader.backend]


def _refuse_unknown_voice(model: ModelFacts, voice: str) -> None:
    """What is known of the files, before any load. Raises ApiError 400."""
    if isinstance(model.header, VoiceHeader) and voice not in model.header.names:
        told = no_such_voice(voice, model.header.names)
        raise ApiError(400, f"Invalid 'voice': {told}", param="voice", code="invalid_value")


async def _sound(run: Run) -> bytes:
    """The next of it, so that what fails at once is a status; empty at its end. Raises ApiError."""
    async for event in run.streams[0]:
        match event:
            case Sound():
                return event.data
            case Failed():
                raise run.problem(event)
            case _:
                pass
    return b""


async def _file(run: Run, first: bytes) -> AsyncIterator[bytes]:
    """Raises ApiError where it fails on the way: the connection is cut, so that the file is seen not to be whole."""
    try:
        while first:
            yield first
            first = await _sound(run)
    finally:
        run.cancel()


def _told(event: Event) -> SoundDelta | SoundDone | None:
    match event:
        case Sound():
            return SoundDelta(base64.b64encode(event.data).decode())
        case Finished():
            said, heard = event.completion_tokens, event.prompt_tokens
            return SoundDone(SoundUsage(heard, said, heard + said))
        case _:
            return None


class _Events(StreamedAnswer):
    """Sound as events."""

    def __init__(self, app: Services, run: Run, headers: dict[str, str]) -> None:
        keepalive_s = app.settings.server.sse_keepalive_s
        super().__init__(
            events(run, _told), run, headers=headers, keepalive_s=keepalive_s, keep_alive=Comments().keep_alive
        )


class _File(StreamedAnswer):
    """Sound as a file: nothing is said in it to show that we are alive."""

    def __init__(self, app: Services, run: Run, first: bytes, headers: dict[str, str], media: str) -> None:
        keepalive_s = app.settings.server.sse_keepalive_s
        super().__init__(
            _file(run, first), run, headers=headers, keepalive_s=keepalive_s, keep_alive=Comments().keep_alive
        )
        self.headers["content-type"] = media

    async def _ping(self, send: Send) -> None:
        """Until the file is whole."""
        del send
        await asyncio.Event().wait()
