"""From pieces of a recording to windows of at most 30 s of speech, each with the way back to the recording's time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.speech.activity import HOP, RATE, Activity, spans
from backends.speech.kind import Pauses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

WINDOW_S: Final = 30
_WINDOW: Final = WINDOW_S * RATE // HOP
"""Frames of a window."""
_EARLIEST_CUT: Final = 20 * RATE // HOP
"""Speech without a pause is cut where it is quietest from here on."""
_KEPT_GAP: Final = RATE // HOP
"""A pause of up to a second stays in a window as it is."""
_LONG_PAUSE: Final = 10 * RATE // HOP
"""No speech that comes later is put into the same window."""


@dataclass(frozen=True)
class Window:
    """Speech that is computed at once."""

    samples: NDArray[np.int16]
    parts: tuple[tuple[float, float], ...]
    """Where parts of it begin: seconds in the window, seconds in the recording."""

    @property
    def duration_s(self) -> float:
        """Of the window."""
        return self.samples.size / RATE

    def time_s(self, at_s: float, *, end: bool = False, slack_s: float = 0.02) -> float:
        """Seconds in the recording. What is within the slack of a cut begins behind it, or has its `end` before it."""
        found = self.parts[0]
        for part in self.parts[1:]:
            if at_s < part[0] + (slack_s if end else -slack_s):
                break
            found = part
        return max(found[1], found[1] + at_s - found[0])

    def rest(self, from_s: float) -> Window:
        """What is left of it from there on."""
        first = round(from_s * RATE)
        later = tuple((begin - from_s, at) for begin, at in self.parts if begin > from_s)
        return Window(self.samples[first:], ((0.0, self.time_s(from_s)), *later))


@dataclass
class Windows:
    """Windows of one recording, made as its pieces come; holds no more of it than a window and a piece."""

    pauses: Pauses = field(default_factory=Pauses)
    speech_s: float = 0.0
    """In all windows so far."""

    def of(self, pieces: Iterable[NDArray[np.int16]]) -> Iterator[Window | None]:
        """The windows in order; None after a piece of which none came, so that others may have their turn."""
        activity, first = Activity(self.pauses), 0
        held, speech = np.zeros(0, dtype=np.int16), np.zeros(0, dtype=np.bool_)
        for piece in pieces:
            held = np.concatenate([held, piece])
            speech = np.concatenate([speech, activity.feed(piece)])
            windows, used = self._cut(held, speech, first, last=False)
            yield from windows
            if not windows:
                yield None
            held, speech, first = held[used * HOP :], speech[used:], first + used
        speech = np.concatenate([speech, activity.feed(np.zeros(0, dtype=np.int16), last=True)])
        yield from self._cut(held, speech, first, last=True)[0]

    def _cut(
        self, held: NDArray[np.int16], speech: NDArray[np.bool_], first: int, *, last: bool
    ) -> tuple[list[Window], int]:
        """Windows of which all is there, and how many frames are done with."""
        found: list[Window] = []
        used = 0
        todo = _shortened(spans(speech, self.pauses), held)
        while todo:
            taken, count = _fitting(todo)
            if not last and count == len(todo) and speech.size - todo[-1][1] < _LONG_PAUSE:
                return found, max(used, todo[0][0])  # the next piece may belong to it
            found.append(self._window(held, taken, first))
            used = taken[-1][1]
            todo = todo[count:]
        margin = self.pauses.padding_ms * RATE // 1000 // HOP + 1
        return found, speech.size if last else max(used, speech.size - margin)

    def _window(self, held: NDArray[np.int16], taken: list[tuple[int, int]], first: int) -> Window:
        parts, samples, at = [], [], 0
        for begin, end in taken:
            part = held[begin * HOP : end * HOP]
            parts.append((at / RATE, (first + begin) * HOP / RATE))
            samples.append(part)
            at += part.size
        self.speech_s += at / RATE
        return Window(np.concatenate(samples), tuple(parts))


def _fitting(todo: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """The first spans that go into one window, and how many they are; with a short pause between them they are one."""
    taken: list[tuple[int, int]] = []
    used = count = 0
    for begin, end in todo:
        joins = bool(taken) and begin - taken[-1][1] <= _KEPT_GAP
        more = end - taken[-1][1] if joins else end - begin
        if taken and used + more > _WINDOW:
            break
        used += more
        count += 1
        if joins:
            taken[-1] = (taken[-1][0], end)
        else:
            taken.append((begin, end))
    return taken, count


def _shortened(found: list[tuple[int, int]], held: NDArray[np.int16]) -> list[tuple[int, int]]:
    """The spans, longer ones than a window cut where they are quietest."""
    short: list[tuple[int, int]] = []
    for begin, end in found:
        while end - begin > _WINDOW:
            some = held[(begin + _EARLIEST_CUT) * HOP : (begin + _WINDOW) * HOP].astype(np.float32)
            power = np.square(some.reshape(-1, HOP)).mean(axis=1)
            smooth = np.convolve(power, np.ones(5) / 5, mode="same")
            cut = begin + _EARLIEST_CUT + int(smooth[2:-2].argmin()) + 2
            short.append((begin, cut))
            begin = cut
        short.append((begin, end))
    return short
