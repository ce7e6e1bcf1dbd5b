"""The engine that hears: windows of all its jobs share each pass, and a job's text comes in the order of its sound.

Owns jobs, their windows and whose turn it is. A pass gives other work its turn every few tokens, so that a cancelled
job ends at once and a new one waits for no more than the pass at hand.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from backends.engine import JobError
from backends.messages import Finished, Step
from backends.pytorch import shortage
from backends.speech.audio import Recording
from backends.speech.kind import FILE_BYTES, Heard, Segment, Segments, SpeechFacts, Transcribe
from backends.speech.tokens import name_of
from backends.speech.windows import Window, Windows
from backends.stateless import StatelessEngine

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from backends.messages import Event, Job, Ready
    from backends.speech.listening import Asked, Listener

_PIECES_PER_TURN: Final = 6
"""Of a recording, a minute, are decoded at most before others have their turn."""
_TIME_S: Final = 0.02


@dataclass(eq=False)
class Place:
    """One window of a job in the order of its sound."""

    window: Window
    is_taken: bool = False
    segments: list[Segment] | None = None
    """None until it is computed."""


@dataclass(eq=False)
class Hearing:
    """A job with its recording."""

    job: Transcribe
    recording: Recording
    windows: Windows
    source: Iterator[Window | None]
    asked: Asked
    places: deque[Place] = field(default_factory=deque)
    is_read: bool = False
    """Nothing more comes of the recording."""
    is_over: bool = False
    begun_s: float = field(default_factory=time.perf_counter)
    n_tokens: int = 0
    last_end_s: float = 0.0

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    def read(self) -> None:
        """On to the next window, or some pieces further. Raises JobError."""
        for _ in range(_PIECES_PER_TURN):
            window = next(self.source, "end")
            if isinstance(window, Window):
                self.places.append(Place(window))
                return
            if window == "end":
                self.is_read = True
                return

    def close(self) -> None:
        """Nothing more is wanted of it."""
        self.is_over = True
        self.places.clear()
        self.recording.close()


class SpeechEngine(StatelessEngine[Hearing, SpeechFacts]):
    """See `backends.engine.Engine`."""

    takes: Sequence[type[Job]] = (Transcribe,)

    def __init__(self, listener: Listener, ready: Ready[SpeechFacts]) -> None:
        super().__init__(ready)
        self._listener = listener
        self._pass: Generator[None, None, list[Event]] | None = None
        self._taken: list[tuple[Hearing, Place]] = []

    @property
    def idle(self) -> bool:
        """True when no job waits for text."""
        return not self._running and self._pass is None

    def prepare(self, job: Transcribe) -> Hearing:
        """Check what is asked, open the recording, and read it up to its first window; from the preparer's thread."""
        asked = self._listener.asked(job)
        recording = Recording(job.file.path, n_bytes=FILE_BYTES, max_s=self._ready.facts.max_audio_s)
        windows = Windows(job.pauses)
        hearing = Hearing(job, recording, windows, windows.of(recording.pieces()), asked)
        try:
            hearing.read()
        except BaseException:
            hearing.close()
            raise
        return hearing

    def add(self, prepared: Hearing) -> list[Event]:
        """Take a job in; its first window is in the next pass."""
        return self._admitted(prepared, prompt_tokens=0)

    def _let_go(self, job: Hearing) -> None:
        """What a pass still computes of it is thrown away."""
        job.close()
        if self._pass is not None and all(one.is_over for one, _ in self._taken):
            self._pass.close()
            self._pass = None

    def step(self) -> Step:
        """A turn of the pass at hand, or the begin of the next."""
        begin = time.perf_counter_ns()
        events: list[Event] = []
        n_windows = 0
        if self._pass is None:
            events += self._read()
            self._taken = self._chosen()
            if self._taken:
                self._pass = self._computed(self._taken)
        if self._pass is not None:
            at_hand, self._pass = self._pass, None  # a job that fails in it does not close it
            try:
                next(at_hand)
                self._pass = at_hand
            except StopIteration as ended:
                n_windows = len(self._taken)
                events += ended.value
            except (RuntimeError, MemoryError) as error:
                if not shortage.is_shortage(error):
                    raise
                events += self._short(shortage.told(error))
        events += self._ends()
        duration_us = (time.perf_counter_ns() - begin) // 1000
        return Step(events=events, n_inputs=n_windows, duration_us=duration_us)

    def _read(self) -> list[Event]:
        """Every job that has nothing to compute reads on in its recording."""
        events: list[Event] = []
        for hearing in [*self._running]:
            if hearing.is_read or (hearing.asked.code is None and hearing.places):
                continue
            try:
                while len(hearing.places) < self._ready.parallel and not hearing.is_read:
                    before = len(hearing.places)
                    hearing.read()
                    if len(hearing.places) == before or len(self._running) > 1:
                        break
            except JobError as error:
                events += self._failed(hearing, error.code, error.message, param=error.param)
        return events

    def _chosen(self) -> list[tuple[Hearing, Place]]:
        """Windows for the next pass, of each job in turn."""
        taken: list[tuple[Hearing, Place]] = []
        waiting = [
            deque(place for place in hearing.places if not place.is_taken)
            if hearing.asked.code is not None
            else deque(place for place in [*hearing.places][:1] if not place.is_taken)
            for hearing in self._running
        ]
        while any(waiting) and len(taken) < self._ready.parallel:
            for hearing, places in zip(self._running, waiting, strict=True):
                if places and len(taken) < self._ready.parallel:
                    place = places.popleft()
                    place.is_taken = True
                    taken.append((hearing, place))
        self._running.rotate(-1)
        return taken

    def _computed(self, taken: list[tuple[Hearing, Place]]) -> Generator[None, None, list[Event]]:
        """One pass; what is over by then is thrown away."""
        found = yield from self._listener.listen(
            [place.window for _, place in taken], [hearing.asked for hearing, _ in taken]
        )
        events: list[Event] = []
        for (hearing, place), one in zip(taken, found, strict=True):
            if hearing.is_over:
                continue
            if one is None:
                told = "the model computed numbers that are not finite; its files may be broken"
                events += self._failed(hearing, "internal_error", told)
                continue
            hearing.asked = dataclasses.replace(hearing.asked, code=one.code)
            hearing.n_tokens += one.n_tokens
            place.segments = one.segments
            if one.rest is not None:
                hearing.places.insert(hearing.places.index(place) + 1, Place(one.rest))
        for hearing in {id(hearing): hearing for hearing, _ in taken}.values():
            events += self._said(hearing)
        return events

    def _said(self, hearing: Hearing) -> list[Event]:
        """The segments that are next in order."""
        segments: list[Segment] = []
        while hearing.places and hearing.places[0].segments is not None:
            for one in hearing.places.popleft().segments or ():
                start_s = max(one.start_s, min(hearing.last_end_s, one.end_s))
                segments.append(replace(one, start_s=start_s, end_s=max(start_s, one.end_s)))
                hearing.last_end_s = segments[-1].end_s
        return [Segments(id=hearing.id, segments=segments)] if segments and not hearing.is_over else []

    def _ends(self) -> list[Event]:
        """The jobs of which everything is told."""
        events: list[Event] = []
        for hearing in [one for one in self._running if one.is_read and not one.places]:
            audio_s = hearing.recording.decoded_s
            language = name_of(hearing.asked.code or "")
            if hearing.job.task == "translate":
                language = name_of("en")
            took_s = time.perf_counter() - hearing.begun_s
            events.append(Heard(hearing.id, language, audio_s, hearing.windows.speech_s, took_s))
            n_prompt = math.ceil(hearing.windows.speech_s / _TIME_S)
            events.append(Finished(hearing.id, prompt_tokens=n_prompt, completion_tokens=hearing.n_tokens))
            hearing.close()
            self._running.remove(hearing)
        return events

    def _short(self, told: str) -> list[Event]:
        message = f"no memory is left for windows of {len(self._taken)} x 30 s: {told}. hint: a smaller parallel"
        gone = {id(hearing): hearing for hearing, _ in self._taken if not hearing.is_over}.values()
        return [event for hearing in gone for event in self._failed(hearing, "out_of_memory", message)]
