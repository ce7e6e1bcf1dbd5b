"""Threads that read models' files, and nothing else: one per model at most, each given up after a while.

A disk or a network file system that does not answer holds a thread for ever, and no one can end it. So these are daemon
threads, they share no pool with anything else, and a model whose thread is stuck gets no other one. For the event
loop's thread only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from backends.backend import HeaderError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

WITHIN_S: Final = 8.0
"""For one model's configuration, headers and vocabulary files; no weights are among them."""
AT_ONCE_S: Final = 0.05


@dataclass
class _Reading(Generic[T]):
    """One thread's work, and what came of it."""

    began: float = field(default_factory=time.monotonic)
    result: T | None = None
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, work: Callable[[], T]) -> None:
        try:
            self.result = work()
        except BaseException as error:  # told to the one that waits
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class Reader:
    """See the module's text."""

    def __init__(self, *, within_s: float = WITHIN_S) -> None:
        self._within_s = within_s
        self._busy: dict[str, _Reading[object]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def read(self, name: str, work: Callable[[], T]) -> T:
        """What `work` gives, done on a thread for the model of this name. Raises HeaderError when it takes too long."""
        self._refuse_if_stuck(name)
        turn = self._turns.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(self._within_s):
                async with turn:
                    reading = await self._begun(name, work)
        except TimeoutError:
            raise HeaderError(self._told()) from None
        return reading.outcome()

    def at_once(self, name: str, work: Callable[[], T]) -> T | None:
        """The same without giving way to anybody; None where it does not come at once. For a look at a file's size."""
        if name in self._busy:
            return None
        reading = self._start(name, work)
        return reading.outcome() if reading.over.wait(AT_ONCE_S) else None

    async def _begun(self, name: str, work: Callable[[], T]) -> _Reading[T]:
        while (busy := self._busy.get(name)) is not None:
            await _end_of(busy)
        reading = self._start(name, work)
        await _end_of(reading)
        return reading

    def _start(self, name: str, work: Callable[[], T]) -> _Reading[T]:
        reading: _Reading[T] = _Reading()
        self._busy[name] = reading  # type: ignore[assignment]

        def run() -> None:
            reading.run(work)
            del self._busy[name]
            reading.over.set()

        threading.Thread(target=run, name="model-files", daemon=True).start()
        return reading

    def _refuse_if_stuck(self, name: str) -> None:
        busy = self._busy.get(name)
        if busy is not None and time.monotonic() - busy.began > self._within_s:
            raise HeaderError(self._told())

    def _told(self) -> str:
        return (
            f"its files could not be read within {self._within_s:g} s: their disk or network file system does not "
            "answer. hint: look at it with `ls`; the model is served once it answers again"
        )


async def _end_of(reading: _Reading[T]) -> None:
    """Wait for the thread; its end is looked for, because it may come when no loop runs any more."""
    pause_s = 0.0005
    while not reading.over.is_set():
        await asyncio.sleep(pause_s)
        pause_s = min(0.05, pause_s * 1.5)
