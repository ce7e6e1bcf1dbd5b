"""The kind of job: a text to be said, the sound that comes back, and what a model for it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from backends.kinds import Kind, Metric
from backends.messages import Event, Facts, Figure, Job, LoadPlan, Part
from backends.weight import text_bytes

SoundFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
MAX_CHARS: Final = 4096
"""Of one text; OpenAI's limit."""
RATE: Final = 24_000
"""Samples per second of all voices."""
Encoded = bytes
"""An alias, because a field of that name would hide the type from msgspec."""


class Speak(Job, tag="speak", frozen=True):
    """Say a text. Answered by `Started`, `Sound` as it is made, `Spoken`, `Finished`."""

    text: str
    voice: str
    format: SoundFormat = "mp3"
    speed: float = 1.0
    """0.25..4; 1 is the voice's own."""


class Sound(Part, tag="sound", frozen=True):
    """More of the file, in order."""

    data: Encoded


class Spoken(Part, tag="spoken", frozen=True):
    """All of the text has been said."""

    audio_s: float
    took_s: float
    """Since the job was begun."""


class VoiceFacts(Facts, tag="voice", frozen=True):
    """Of a model that speaks."""

    voices: list[str]

    @property
    def told(self) -> Mapping[str, Figure]:
        """The names that requests may say."""
        return {"voices": ", ".join(self.voices)}


class VoicePlan(LoadPlan, tag="voice", frozen=True):
    """How many texts are said at once; it computes on the processor wherever others do."""

    parallel: int

    @property
    def words(self) -> str:
        """For people."""
        return f"parallel {self.parallel}"


def _audio(_job: Speak, event: Event) -> float | None:
    return event.audio_s if isinstance(event, Spoken) else None


def _speed(_job: Speak, event: Event) -> float | None:
    return event.took_s / event.audio_s if isinstance(event, Spoken) and event.audio_s else None


SPEAK: Final = Kind(
    name="speak",
    job=Speak,
    parts=(Sound, Spoken),
    capability="speech",
    gives="speech",
    does="says texts",
    lacks="has no voice",
    wanted="a model that speaks",
    paths=("/v1/audio/speech",),
    weight=lambda job: text_bytes(job.text),
    facts=VoiceFacts,
    plan=VoicePlan,
    metrics=(
        Metric("speech_seconds", "counter", "Seconds of speech that were made of texts", _audio),
        Metric(
            "speech_real_time_factor",
            "histogram",
            "Seconds that a second of each speech took",
            _speed,
            edges=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
        ),
    ),
    params={"text": "input"},
)


def no_such_voice(asked: str, known: Sequence[str]) -> str:
    """What a client is told."""
    return f"this model has no voice {asked[:40]!r}; it has: {', '.join(known)}"
