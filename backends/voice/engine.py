"""The engine that speaks: a piece of one text in each step, of all texts in turn."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from backends.engine import JobError
from backends.messages import Finished, Step
from backends.stateless import StatelessEngine
from backends.voice.encoding import Encoder
from backends.voice.kind import MAX_CHARS, RATE, Sound, Speak, Spoken, no_such_voice
from backends.voice.reading import pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backends.messages import Event, Job, Ready
    from backends.voice.kind import VoiceFacts
    from backends.voice.speaker import Speaker

SLOWEST: Final = 0.5
FASTEST: Final = 2.0
"""Of the voices themselves; what is beyond is stretched."""
_NOTHING_SAID: Final = "the text has no word that this voice can say. hint: it speaks English"
_FRAME: Final = 300
"""Samples of the voices' frames, which are counted as tokens."""


@dataclass(eq=False)
class Talk:
    """One job, and what of its text is still to be said."""

    job: Speak
    left: deque[str]
    speed: float
    """Of the voice."""
    encoder: Encoder
    n_phonemes: int = 0
    begun_s: float = field(default_factory=time.perf_counter)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id


class VoiceEngine(StatelessEngine[Talk, "VoiceFacts"]):
    """See `backends.engine.Engine`."""

    takes: Sequence[type[Job]] = (Speak,)

    def __init__(self, speakers: Mapping[str, Speaker], ready: Ready[VoiceFacts]) -> None:
        super().__init__(ready)
        self._speakers = speakers

    def prepare(self, job: Speak) -> Talk:
        """Check what is asked and cut the text into pieces; from the preparer's thread."""
        if job.voice not in self._speakers:
            raise JobError("invalid_value", no_such_voice(job.voice, list(self._speakers)), param="voice")
        if len(job.text) > MAX_CHARS:
            told = f"the text has {len(job.text)} characters, and {MAX_CHARS} are the most. hint: send it in parts"
            raise JobError("invalid_value", told, param="text")
        found = pieces(job.text)
        if not found:
            raise JobError("invalid_value", "the text has no word that can be said", param="text")
        speed = min(max(job.speed, SLOWEST), FASTEST)
        return Talk(job, deque(found), speed, Encoder(job.format, tempo=job.speed / speed))

    def add(self, prepared: Talk) -> list[Event]:
        """Take a job in; its first sentence is said in one of the next steps."""
        return self._admitted(prepared, prompt_tokens=0)

    def _let_go(self, talk: Talk) -> None:
        talk.encoder.close()

    def step(self) -> Step:
        """The next piece of the text whose turn it is."""
        if not self._running:
            return Step()
        begin = time.perf_counter_ns()
        talk = self._running[0]
        self._running.rotate(-1)
        events = self._said(talk)
        return Step(events=events, n_inputs=1, duration_us=(time.perf_counter_ns() - begin) // 1000)

    def _said(self, talk: Talk) -> list[Event]:
        try:
            n_phonemes, sound = self._speakers[talk.job.voice].say(talk.left.popleft(), talk.speed)
        except JobError as error:
            return self._failed(
                talk, error.code, error.message, param="text" if error.code == "invalid_value" else None
            )
        talk.n_phonemes += n_phonemes
        data = talk.encoder.write(sound)
        if talk.left:
            return [Sound(talk.id, data)] if data else []
        if talk.n_phonemes == 0:
            return self._failed(talk, "invalid_value", _NOTHING_SAID, param="text")
        return self._ended(talk, data + talk.encoder.end())

    def _ended(self, talk: Talk, data: bytes) -> list[Event]:
        self._running.remove(talk)
        n_samples = talk.encoder.n_samples
        took_s = time.perf_counter() - talk.begun_s
        usage = Finished(talk.id, prompt_tokens=talk.n_phonemes, completion_tokens=n_samples // _FRAME)
        return [Sound(talk.id, data), Spoken(talk.id, n_samples / RATE, took_s), usage]
