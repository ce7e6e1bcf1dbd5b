"""Where in a recording there is speech: from how loud it is against its own pauses. Pure, a piece at a time.

Speech has pauses between its syllables, in which it is as quiet as the room. So what is steady, such as silence, noise
or a hum, is no speech however loud it is. Whether other sounds are words is the model's to tell.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.speech.kind import Pauses

RATE: Final = 16_000
HOP: Final = 320
"""Samples of a frame, 20 ms."""
_CONTEXT: Final = 1500
"""Frames that the level of the room is judged by, 30 s."""
_SILENT_DB: Final = -62.0
"""Below it nothing is heard, of full scale."""
_STEADY_DB: Final = 7.0
"""Sound whose loudness changes by less is none of speech."""
_ABOVE_DB: Final = 8.0
"""Speech is by so much louder than the pauses, at the middle threshold."""
_SHARE: Final = 0.45
"""Of the range between pauses and loud speech, where that is narrow."""
_SHORTEST: Final = 4
"""Frames of speech in a row; a click has fewer."""
_AFTER_MS: Final = 240
"""Kept behind speech: words end quietly."""


@dataclass
class Activity:
    """The speech of one recording; frames are counted from its beginning."""

    pauses: Pauses
    _rest: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, dtype=np.int16))
    _levels: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """Of the last frames."""
    n_frames: int = 0

    def feed(self, samples: NDArray[np.int16], *, last: bool = False) -> NDArray[np.bool_]:
        """`(n,) bool`: which of the frames that are complete now are speech. The `last` frame may be short."""
        samples = np.concatenate([self._rest, samples])
        if last and samples.size % HOP:
            samples = np.concatenate([samples, np.zeros(-samples.size % HOP, dtype=np.int16)])
        n = samples.size // HOP
        self._rest = samples[n * HOP :]
        if n == 0:
            return np.zeros(0, dtype=np.bool_)
        levels = _levels(samples[: n * HOP].reshape(n, HOP))
        self._levels = np.concatenate([self._levels, levels])[-max(_CONTEXT, n) :]
        self.n_frames += n
        return levels > self._limit()

    def _limit(self) -> float:
        """What speech is louder than."""
        heard = self._levels[self._levels > _SILENT_DB - 10]
        if heard.size == 0:
            return 0.0
        quiet, loud = (float(one) for one in np.percentile(heard, (10, 97)))
        if heard.size < self._levels.size * 0.9:  # what is below that is a pause
            quiet = min(quiet, _SILENT_DB)
        spread = loud - quiet
        strict = self.pauses.threshold / 0.5
        if spread < _STEADY_DB * max(1.0, strict):
            return 0.0
        return max(_SILENT_DB, quiet + strict * min(_ABOVE_DB, spread * _SHARE))


def _levels(frames: NDArray[np.int16]) -> NDArray[np.float32]:
    """`(n, HOP)` -> `(n,)` decibels of full scale, without what no voice has: the differences take out a hum."""
    values = frames.astype(np.float32) / 32768
    values -= values.mean(axis=1, keepdims=True)
    power = np.square(values).mean(axis=1)
    found: NDArray[np.float32] = 10 * np.log10(power + 1e-12)
    return found


def spans(speech: NDArray[np.bool_], pauses: Pauses) -> list[tuple[int, int]]:
    """Frames from where to where there is speech, with what is kept around it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speech, [False]]).astype(np.int8)))
    pairs = [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]
    silence = max(1, pauses.silence_ms * RATE // 1000 // HOP)
    joined: list[tuple[int, int]] = []
    for begin, end in pairs:
        if joined and begin - joined[-1][1] <= silence:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    before, after = pauses.padding_ms * RATE // 1000 // HOP, _AFTER_MS * RATE // 1000 // HOP
    found: list[tuple[int, int]] = []
    for begin, end in joined:
        if end - begin < _SHORTEST:
            continue
        begin, end = max(0, begin - before), min(speech.size, end + after)
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found
