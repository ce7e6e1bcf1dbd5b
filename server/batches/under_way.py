"""Lines of batches that are asked now: begun, their answers kept, put off, or given back to be asked later.

Owns what becomes of each, and what is told of batches whose models others leave no memory. How a line is asked is its
caller's. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from server.batches.reading import Problem
from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

    from server.batches.records import LeftLine
    from server.batches.store import BatchStore

MOST_TRIES: Final = 4
_ROOM_S: Final = 30.0
"""Until a model is asked again whose memory others hold: a program's lease, or the hours of the day."""
_AGAIN_S: Final = (1.0, 5.0, 20.0)
"""Until a line is asked again, by how often it was."""
UNWRITTEN_S: Final = 10.0
"""The same where its answer could not be written."""
_LOG: Final = logging.getLogger("onecard.batches")


@dataclass(frozen=True)
class Answer:
    """What a line was answered."""

    status: int
    request_id: str
    body: bytes
    may_pass: bool
    """It is worth asking again later."""
    short_of: str | None = None
    """What is missing, where others hold the memory that its model needs: that says nothing about the line."""


@dataclass(eq=False)
class _Running:
    """A line that is asked."""

    line: LeftLine
    task: asyncio.Task[None] = field(init=False)
    asking: bool = True
    """No answer has come yet, so it can be given back."""


class LinesUnderWay:
    """Of one runner."""

    def __init__(
        self, store: BatchStore, ask: Callable[[LeftLine], Awaitable[Answer]], count: Callable[[str], None]
    ) -> None:
        """`count` is told of each line: ok, failed, retried or given_back."""
        self._store, self._ask, self._count = store, ask, count
        self._running: dict[tuple[int, int], _Running] = {}
        self._not_before: dict[str, float] = {}
        """By the model that failed a line, when one is asked of it again."""
        self._held_up: dict[int, dict[str, Problem]] = {}
        """By batch and model, what its lines wait for: memory that others hold. Empty where nothing is told of it."""

    @property
    def lines(self) -> list[LeftLine]:
        """Those there are."""
        return [one.line for one in self._running.values()]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Their batches and numbers."""
        return list(self._running)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """One for each: done, it is under way no more."""
        return [one.task for one in self._running.values()]

    def not_before(self, model: str) -> float:
        """When a line is asked of a model again, in the loop's time; 0: at once."""
        return self._not_before.get(model, 0.0)

    def company(self, lines: list[LeftLine]) -> list[LeftLine]:
        """Those that may run beside what runs: one that has failed runs alone, so that it fails alone."""
        if any(one.line.tries for one in self._running.values()):
            return []
        if lines and lines[0].tries:
            return [] if self._running else lines[:1]
        return [line for line in lines if not line.tries]

    def make_way(self, is_asked: Callable[[str], bool], *, waits: bool) -> None:
        """A client's request for a model has come: other models' lines are given back, of its own one if it waits."""
        asked = [one for one in self._running.values() if one.asking]
        mine = [one for one in asked if is_asked(one.line.model)]
        self._withdraw(one for one in asked if one not in mine)
        if waits:
            self._withdraw(mine[-1:])

    def give_back(self, which: Callable[[LeftLine], bool]) -> None:
        """They are asked later, if their batches still go on."""
        self._withdraw([one for one in self._running.values() if which(one.line)])

    def forget_all_but(self, places: Collection[int]) -> None:
        """Only these batches are open."""
        self._held_up = {place: told for place, told in self._held_up.items() if place in places}

    def begin(self, line: LeftLine) -> None:
        """Ask it."""
        running = self._running[(line.batch, line.n)] = _Running(line)
        running.task = asyncio.create_task(self._line(running))
        running.task.add_done_callback(lambda _: self._ended(running))

    def _ended(self, running: _Running) -> None:
        """Here and not in the task: of one that is given back before its first step nothing runs."""
        del self._running[(running.line.batch, running.line.n)]
        if running.task.cancelled():
            self._count("given_back")

    async def _line(self, running: _Running) -> None:
        line = running.line
        try:
            answer = await self._ask(line)
            running.asking = False
            await self._keep(line, answer)
        except ApiError as problem:
            self._not_before[line.model] = _now() + UNWRITTEN_S
            _LOG.warning("batch_line_unwritten reason=%s", problem.code)

    async def _keep(self, line: LeftLine, answer: Answer) -> None:
        """Raises ApiError 503 where it cannot be written: the line is asked once more."""
        if answer.short_of is not None:
            self._not_before[line.model] = _now() + _ROOM_S
            self._count("given_back")
            await self._complain(line, answer.short_of)
            return
        if answer.may_pass and line.tries + 1 < MOST_TRIES:
            await asyncio.to_thread(self._store.tried, line)
            self._not_before[line.model] = _now() + _AGAIN_S[min(line.tries, len(_AGAIN_S) - 1)]
            self._count("retried")
            return
        kept = await asyncio.to_thread(
            self._store.answer, line, status=answer.status, request_id=answer.request_id, answer=answer.body
        )
        if kept:
            self._count("ok" if answer.status < 300 else "failed")
        await self._complain(line, None)

    async def _complain(self, line: LeftLine, told: str | None) -> None:
        """What holds its model's lines of its batch up, once for as long as it does; None: nothing any more."""
        before = self._held_up.get(line.batch)  # None: an earlier run may have left something
        problems = {model: one for model, one in (before or {}).items() if model != line.model}
        if told is not None:
            problems[line.model] = Problem("memory_busy", f"{told.rstrip('.')}. Its lines wait.", line.n)
        if _messages(problems) == (None if before is None else _messages(before)):
            return
        await asyncio.to_thread(self._store.complain, line.batch, list(problems.values()))
        self._held_up[line.batch] = problems
        if told is not None:
            _LOG.info("batch_waits model=%s reason=%r", line.model, told)

    def _withdraw(self, running: Iterable[_Running]) -> None:
        for one in running:
            if one.asking:
                one.asking = False
                one.task.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _messages(problems: Mapping[str, Problem]) -> dict[str, str]:
    """By model; which line met it first is no news."""
    return {model: one.message for model, one in problems.items()}
