"""The kind of job: what is asked of a recording, what comes back, and what a model for it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from backends.kinds import Kind, Limits, Metric
from backends.messages import Event, Facts, Figure, Job, LoadPlan, Part, SpoolFile
from backends.messages.plain import Plain

Task = Literal["transcribe", "translate"]
TRANSLATION: Final = "translation"
"""The capability of models that translate into English."""
FILE_BYTES: Final = 25 * 2**20
"""OpenAI's limit."""


class Pauses(Plain, frozen=True):
    """How speech is told from silence; the defaults are OpenAI's."""

    threshold: float = 0.5
    """0..1: how clear speech has to be."""
    padding_ms: int = 300
    """Kept before speech begins."""
    silence_ms: int = 200
    """Without speech, after which it has ended."""


class Transcribe(Job, tag="transcribe", frozen=True):
    """Write down what is said in a recording. Answered by `Started`, `Segments` as they come, `Heard`, `Finished`."""

    file: SpoolFile
    task: Task = "transcribe"
    language: str | None = None
    """Code or English name; None: the first 30 s of speech tell."""
    prompt: str = ""
    """Text that the recording follows, for its spelling and style."""
    temperature: float = 0.0
    """0: the likeliest tokens, and where they are no sound text a few higher temperatures."""
    words: bool = False
    """Times of words too."""
    pauses: Pauses = Pauses()


class Word(Plain, frozen=True):
    """A word with its place in the recording."""

    text: str
    start_s: float
    end_s: float


class Segment(Plain, frozen=True):
    """Some seconds of speech as text."""

    text: str
    start_s: float
    end_s: float
    tokens: list[int]
    seek: int
    """Where the window of the recording begins that it is from, in hundredths of a second."""
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()


class Segments(Part, tag="segments", frozen=True):
    """More of the text, in order."""

    segments: list[Segment]


class Heard(Part, tag="heard", frozen=True):
    """The recording has been heard to its end."""

    language: str
    """Its English name, such as `german`; empty where nothing was said."""
    audio_s: float
    speech_s: float
    """Of it, what was no silence."""
    took_s: float
    """Since the job was begun."""


class SpeechFacts(Facts, tag="speech", frozen=True):
    """Of a model that hears."""

    max_audio_s: float
    n_languages: int

    @property
    def told(self) -> Mapping[str, Figure]:
        """The longest recording, and how many languages."""
        return {"max_audio_s": self.max_audio_s, "languages": self.n_languages}


class SpeechPlan(LoadPlan, tag="speech", frozen=True):
    """How many windows of 30 s are computed at once."""

    parallel: int

    @property
    def words(self) -> str:
        """For people."""
        return f"parallel {self.parallel}"


def _audio(_job: Transcribe, event: Event) -> float | None:
    return event.audio_s if isinstance(event, Heard) else None


def _speed(_job: Transcribe, event: Event) -> float | None:
    return event.took_s / event.audio_s if isinstance(event, Heard) and event.audio_s else None


PATHS: Final = ("/v1/audio/transcriptions", "/v1/audio/translations")
TRANSCRIBE: Final = Kind(
    name="transcribe",
    job=Transcribe,
    parts=(Segments, Heard),
    capability="transcription",
    gives="transcripts",
    does="transcribes speech",
    lacks="hears no recordings",
    wanted="a model that transcribes speech",
    paths=PATHS,
    forms=PATHS,
    weight=lambda job: job.file.n_bytes,
    facts=SpeechFacts,
    plan=SpeechPlan,
    metrics=(
        Metric("audio_seconds", "counter", "Seconds of recordings that were transcribed", _audio),
        Metric(
            "audio_real_time_factor",
            "histogram",
            "Seconds that a second of each recording took",
            _speed,
            edges=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
        ),
    ),
    limits=Limits(
        files=("file",),
        file_bytes=FILE_BYTES,
        media=("audio/*", "video/*", "application/ogg", "application/x-flac"),
    ),
)
