"""What was heard as clients want it: plain text, subtitles, or OpenAI's objects. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import Finished
    from backends.speech.kind import Heard, Segment

Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
MEDIA: Final = {"json": "application/json", "verbose_json": "application/json", "vtt": "text/vtt; charset=utf-8"}
_VTT: Final = "WEBVTT\n\n"
PLAIN: Final = "text/plain; charset=utf-8"


class Duration(msgspec.Struct, frozen=True):
    """How much was heard, as what is billed by the second says it."""

    seconds: float
    type: Literal["duration"] = "duration"


class AudioTokens(msgspec.Struct, frozen=True):
    """Positions of the encoder that speech took."""

    audio_tokens: int
    text_tokens: int = 0


class TokenUsage(msgspec.Struct, frozen=True):
    """How much was heard and written, in tokens."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: AudioTokens
    type: Literal["tokens"] = "tokens"


class Transcription(msgspec.Struct, frozen=True):
    """The answer in `json`."""

    text: str
    usage: Duration


class TranscriptionSegment(msgspec.Struct, frozen=True):
    """Some seconds of speech."""

    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(msgspec.Struct, frozen=True):
    """A word with its times."""

    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer in `verbose_json`."""

    task: str
    language: str
    duration: float
    text: str
    usage: Duration
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None


class TextDelta(msgspec.Struct, frozen=True):
    """More text of a streamed transcription."""

    delta: str
    type: Literal["transcript.text.delta"] = "transcript.text.delta"


class TextDone(msgspec.Struct, frozen=True):
    """The whole text of a streamed transcription, at its end."""

    text: str
    usage: TokenUsage
    type: Literal["transcript.text.done"] = "transcript.text.done"


@dataclass
class Transcript:
    """One answer, gathered from its segments."""

    task: str
    segments: list[Segment] = field(default_factory=list)
    heard: Heard | None = None

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(one.text for one in self.segments).strip()

    def add(self, segments: Sequence[Segment], form: Format = "json") -> str:
        """More of it; returns what that adds to the document, where it is text or subtitles."""
        if form in ("srt", "vtt"):
            known, self.segments = self.segments, [*self.segments, *segments]
            begin = "" if known or form == "srt" else _VTT
            return begin + _cues(segments, form, first=len(known) + 1)
        before = len(self.text)
        self.segments += segments
        return self.text[before:]

    def whole(self, form: Format) -> str:
        """The document: its text, or its subtitles."""
        if form in ("srt", "vtt"):
            return ("" if form == "srt" else _VTT) + _cues(self.segments, form, first=1)
        return self.text

    def usage(self, finished: Finished) -> TokenUsage:
        """In tokens."""
        heard, written = finished.prompt_tokens, finished.completion_tokens
        return TokenUsage(heard, written, heard + written, AudioTokens(heard))

    def body(self, form: Format, granularities: Sequence[str]) -> bytes:
        """The whole answer."""
        match form:
            case "text":
                return f"{self.text}\n".encode()
            case "srt" | "vtt":
                return self.whole(form).encode()
            case "json" | "verbose_json":
                return msgspec.json.encode(self.object(form, granularities))

    def object(self, form: Format, granularities: Sequence[str]) -> Transcription | VerboseTranscription:
        """OpenAI's."""
        audio_s = 0.0 if self.heard is None else self.heard.audio_s
        duration = Duration(math.ceil(audio_s))
        if form == "json":
            return Transcription(self.text, duration)
        return VerboseTranscription(
            self.task,
            "" if self.heard is None else self.heard.language,
            round(audio_s, 2),
            self.text,
            duration,
            [_segment(place, one) for place, one in enumerate(self.segments)] if "segment" in granularities else None,
            [TranscriptionWord(word.text, word.start_s, word.end_s) for one in self.segments for word in one.words]
            if "word" in granularities
            else None,
        )


def _segment(place: int, one: Segment) -> TranscriptionSegment:
    return TranscriptionSegment(
        place,
        one.seek,
        one.start_s,
        one.end_s,
        one.text,
        one.tokens,
        one.temperature,
        one.avg_logprob,
        one.compression_ratio,
        one.no_speech_prob,
    )


def _cues(segments: Sequence[Segment], form: Format, *, first: int) -> str:
    """Subtitles from that number on; WebVTT has none."""
    comma = form == "srt"
    found = []
    for number, one in enumerate(segments, first):
        times = f"{_clock(one.start_s, comma=comma)} --> {_clock(one.end_s, comma=comma)}"
        found.append("\n".join([*([str(number)] if comma else []), times, _cue(one.text), "", ""]))
    return "".join(found)


def _clock(at_s: float, *, comma: bool) -> str:
    """`00:01:02,345`, or with a point for WebVTT."""
    ms = round(at_s * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{',' if comma else '.'}{ms % 1000:03}"


def _cue(text: str) -> str:
    """Text that ends no cue and looks like no times."""
    return " ".join(text.split()).replace("-->", "->")
