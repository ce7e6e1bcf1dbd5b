"""How many threads a decoding step takes: all, unless other processes hold their cores and fewer are faster.

Between two operations of a forward pass all threads wait for the slowest. One that shares its core with another process
makes the others wait hundreds of times per step. On two cores, beside a process that wants half of one, a model of 88 M
parameters generates 40 to 55 tokens/s with two threads that sleep soon, and 75 to 125 with one.

Another number rounds differently, as another batch does. So other numbers are tried only while threads have to wait for
a core: a machine that has nothing else to do computes every step alike.
"""

from __future__ import annotations

import os
from collections import deque
from statistics import fmean
from typing import Final

MOST_ROWS: Final = 16
"""Steps with more rows compute for longer than their threads wait: they take all."""
CROWDED: Final = 0.25
"""Seconds that threads waited for a core, per second: from here on other processes are in the way."""
_WINDOW: Final = 8
"""Steps over which that is measured, and that a trial is held against."""
_TRIAL: Final = 5
"""Steps of one trial."""
_FIRST_PAUSE: Final = 16
_LONGEST_PAUSE: Final = 256
"""Steps between trials: twice as many after each that changed nothing, up to here."""
_BETTER: Final = 0.93
"""A trial of fewer threads wins that takes at most this share of the time."""
_HOPELESS: Final = 1.5
"""A trial ends early that has taken so many times as long as all its steps would."""
_AS_GOOD: Final = 0.98
"""The same for more of them: where both are alike, all compute."""
_TOY_BYTES: Final = 32 << 20


def sensible_threads(n_bytes: int, *, toy_bytes: int = _TOY_BYTES) -> int:
    """Every core for real models, one for toys, where threads waiting at barriers cost more than they compute.

    Measured on two cores: a 3.5 MiB model steps in 0.8 ms with one thread, and in 20 ms with two beside a busy process.
    An encoder computes many texts between two barriers: 64 short ones take one of 24 MB 18 ms with two threads, 31 with
    one. A single one takes it 0.84 and 1.07 ms, but beside a busy process 10 and 2.5, so short passes keep to one.
    """
    return 1 if n_bytes < toy_bytes else len(os.sched_getaffinity(0))


def waited_ns() -> int:
    """Nanoseconds that the threads of this process have been ready to run and were not; 0 where the kernel counts none.

    The second number of `/proc/PID/task/TID/schedstat` (Linux, Documentation/scheduler/sched-stats.rst). Read without
    `pathlib`, because it lies between two steps: 10 us a thread instead of 40.
    """
    total = 0
    with os.scandir("/proc/self/task") as tasks:
        for task in tasks:
            try:
                file = os.open(f"{task.path}/schedstat", os.O_RDONLY)
            except OSError:  # a thread that has just ended, or a kernel without the file
                continue
            try:
                total += int(os.read(file, 128).split()[1])
            except (OSError, IndexError):
                continue
            finally:
                os.close(file)
    return total


class ThreadChoice:
    """The number of threads for each step of few rows, between 1 and `most`. Pure: durations are told, not taken.

    Call `next` before a step and `learn` after it, and `crowded` whenever `asks` says so. Steps of another number of
    rows begin a comparison anew.
    """

    def __init__(self, most: int) -> None:
        """Begin with all of them."""
        self._most = self._n = most
        self._rows = 0
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self._trial: int | None = None
        self._tried: list[float] = []
        self._pause = self._left = _FIRST_PAUSE
        self._n_steps = 0
        self._us = 0.0
        self._crowded = False
        self._n_trials = 0

    def next(self, n_rows: int) -> int:
        """Threads for a step of so many rows."""
        if n_rows > MOST_ROWS:
            return self._most
        if n_rows != self._rows:
            self._rows = n_rows
            self._recent.clear()
            self._trial = None
        due = self._trial is None and self._left <= 0 and len(self._recent) == _WINDOW
        if due and (self._n < self._most or self._crowded):
            self._trial, self._tried = self._candidate(), []
        return self._n if self._trial is None else self._trial

    def learn(self, n_rows: int, duration_us: float, *, whole: bool = True) -> None:
        """Take in the step that `next` was asked about; one that ended early is compared with none."""
        self._n_steps += 1
        self._us += duration_us
        if n_rows != self._rows or not whole:
            return
        if self._trial is None:
            self._recent.append(duration_us)
            self._left -= 1
            return
        self._tried.append(duration_us)
        if len(self._tried) == _TRIAL or sum(self._tried) > _HOPELESS * _TRIAL * fmean(self._recent):
            self._decide()

    @property
    def asks(self) -> bool:
        """Whether it is time to tell how long threads have waited for a core."""
        return self._n_steps >= _WINDOW

    def crowded(self, waited_us: float) -> None:
        """Take in how long threads have waited for a core since the last time."""
        was_crowded, self._crowded = self._crowded, waited_us > CROWDED * self._us
        self._n_steps, self._us = 0, 0.0
        if self._n == self._most and self._crowded != was_crowded:  # a first trial at once, and no memory of older ones
            self._pause, self._left = _FIRST_PAUSE, 0

    def _candidate(self) -> int:
        """Another number, in turn: more of them, and while threads wait for a core also fewer."""
        fewer = [self._n - 1, self._n // 2, 1] if self._crowded else []
        others = dict.fromkeys(n for n in (*fewer, self._n + 1, self._most) if 1 <= n <= self._most and n != self._n)
        self._n_trials += 1
        return list(others)[self._n_trials % len(others)]

    def _decide(self) -> None:
        assert self._trial is not None
        enough = _BETTER if self._trial < self._n else _AS_GOOD
        if fmean(self._tried) <= enough * fmean(self._recent):
            self._n = self._trial
            self._pause = _FIRST_PAUSE
            self._recent.clear()
        else:
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._left = self._pause
        self._trial = None
