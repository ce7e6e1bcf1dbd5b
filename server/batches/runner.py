"""Runs the lines of batches while nothing else is to be done, one model after the other.

Owns which line is next and when; how a line is asked is its caller's, what is kept of it `server.batches.store`'s. A
line that has to make way for a client's request is asked again later. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from server.batches.ending import Ender
from server.batches.reading import Problem, cut_lines, read_lines
from server.errors import ApiError, place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from server.batches.store import Batch, BatchStore, LeftLine
    from server.files.store import FileStore

MOST_TRIES: Final = 4
_ROOM_S: Final = 30.0
"""Until a model is asked again whose memory others hold: a program's lease, or the hours of the day."""
_AGAIN_S: Final = (1.0, 5.0, 20.0)
"""Until a line is asked again, by how often it was."""
_LOOK_S: Final = 0.25
"""While lines wait for a quiet moment."""
_END_EVERY_S: Final = 2.0
"""Batches that end while others go on get their files so soon."""
_TROUBLE_S: Final = 10.0
_SWEEP_EVERY_S: Final = 600.0
_GONE: Final = 404
_QUIET_RESIDENT_S: Final = 0.5
_QUIET_LOAD_S: Final = 5.0
"""Without a client's request, before a model is loaded for lines: another model may have to leave for it."""
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


class Machine(Protocol):
    """What the runner has to know of the models, by the names that lines have for them."""

    def width(self, model: str) -> int:
        """Lines that a model should have at once."""
        ...

    def resident(self, model: str) -> bool:
        """Whether it is loaded and takes requests."""
        ...

    def same(self, model: str, name: str) -> bool:
        """Whether a line's name for a model means the one of this name."""
        ...

    def quiet_s(self) -> float:
        """How long no client has waited for anything."""
        ...


@dataclass(eq=False)
class _Running:
    """A line that is asked."""

    line: LeftLine
    task: asyncio.Task[None] = field(init=False)
    asking: bool = True
    """No answer has come yet, so it can be given back."""


class BatchRunner:
    """One per server."""

    def __init__(
        self,
        store: BatchStore,
        files: FileStore,
        machine: Machine,
        ask: Callable[[LeftLine], Awaitable[Answer]],
        *,
        clock: Callable[[], float],
        count: Callable[[str], None],
    ) -> None:
        """`clock` gives seconds since 1970; `count` is told of each line: ok, failed, retried or given_back."""
        self._store, self._files, self._machine, self._ask = store, files, machine, ask
        self._clock = clock
        self._count = count
        self._ender = Ender(store, files, clock)
        self._running: dict[tuple[int, int], _Running] = {}
        self._news = asyncio.Event()
        self._not_before: dict[str, float] = {}
        """By the model that failed a line, when one is asked of it again."""
        self._held_up: dict[int, dict[str, Problem]] = {}
        """By batch and model, what its lines wait for: memory that others hold. Empty where nothing is told of it."""
        self._model = ""
        """Whose turn it is."""
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._swept_at = -math.inf

    async def start(self, *, at_once: bool) -> None:
        """Begin; `at_once` where an earlier run may have left something."""
        if at_once:
            self._news.set()
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Batches have come or changed."""
        self._news.set()

    def stop(self) -> None:
        """Begin no line more, and give back those that run: the server is going down."""
        self._stopping = True
        self._withdraw(list(self._running.values()))

    async def close(self) -> None:
        """Nothing runs when it returns; what was answered is kept."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        tasks = [one.task for one in self._running.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def make_way(self, model: str, waits: bool) -> None:
        """A client's request for a model has come: other models' lines are given back, of its own one if it waits.

        Its own model's engine computes no line while it computes a request.
        """
        asked = [one for one in self._running.values() if one.asking]
        mine = [one for one in asked if self._machine.same(one.line.model, model)]
        self._withdraw([one for one in asked if one not in mine])
        if waits and mine:
            self._withdraw([mine[-1]])

    # The walk

    async def _run(self) -> None:
        await self._news.wait()
        trouble: str | None = None
        while True:
            self._news.clear()
            try:
                look_s = await self._once()
            except ApiError as problem:
                if trouble != problem.code:
                    _LOG.warning("batches_paused reason=%s", problem.code)
                trouble = problem.code
                await self._woken(_TROUBLE_S)
                continue
            except Exception as problem:  # a fault of ours must not end all batches for good
                at = place_of(problem)
                if trouble != at:
                    _LOG.error("batches_paused error=%s at=%s", type(problem).__name__, at)
                trouble = at
                await self._woken(_TROUBLE_S)
                continue
            trouble = None
            await self._woken(look_s)

    async def _woken(self, within_s: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):  # wait_for forgets a cancellation that comes with the news
                await self._news.wait()

    async def _once(self) -> float:
        """One model's turn, and what is to be done before and behind it; when to look again. Raises ApiError."""
        await self._sweep()
        batches = await asyncio.to_thread(self._store.open_batches)
        for place in self._held_up.keys() - {batch.place for batch in batches}:
            del self._held_up[place]
        for batch in batches:
            if batch.state == "validating":
                await self._read(batch)
        await self._end_what_is_done()
        models = [] if self._stopping else await asyncio.to_thread(self._store.models_left)
        if models:
            self._model = min(models, key=self._rank)
            await self._turn(self._model)
            await self._end_what_is_done()
        look_s = 0.0 if models else await asyncio.to_thread(self._ender.next_look_s)
        return _SWEEP_EVERY_S if look_s is None else max(_LOOK_S, look_s)

    async def _end_what_is_done(self) -> None:
        await asyncio.to_thread(self._ender.end_what_is_done, {one.line.batch for one in self._running.values()})

    def _rank(self, model: str) -> tuple[bool, bool, bool]:
        """The lowest has its turn: not one that just failed, the one that has it already, one that is loaded."""
        failing = self._now() < self._not_before.get(model, 0.0)
        return failing, model != self._model, not self._machine.resident(model)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    async def _sweep(self) -> None:
        """Files and batches that have had their time leave the disk."""
        if self._now() < self._swept_at + _SWEEP_EVERY_S:
            return
        self._swept_at = self._now()
        await asyncio.to_thread(self._files.sweep)
        if n_gone := await asyncio.to_thread(self._store.sweep):
            _LOG.info("batches_forgotten n=%d", n_gone)

    async def _read(self, batch: Batch) -> None:
        try:
            await asyncio.to_thread(self._read_file, batch)
        except ApiError as problem:
            if problem.status != _GONE:
                raise
            await self._fail(batch, Problem("file_not_found", problem.message, param="input_file_id"))
        except OSError as problem:
            told = f"The input file cannot be read: {(problem.strerror or type(problem).__name__).lower()}."
            await self._fail(batch, Problem("file_unreadable", told, param="input_file_id"))
        except Exception as problem:  # a fault of ours is this batch's alone
            await self._failed_by_us(batch, problem)

    def _read_file(self, batch: Batch) -> None:
        file = self._files.get(batch.record.input_file_id, None)
        with self._files.content(file).open("rb") as lines:
            self._store.fill(batch, read_lines(cut_lines(lines), batch.record.endpoint))
        _LOG.info("batch_read id=%s", batch.id)

    async def _fail(self, batch: Batch, problem: Problem) -> None:
        await asyncio.to_thread(self._store.fail, batch, [problem])

    async def _failed_by_us(self, batch: Batch, problem: Exception) -> None:
        error = type(problem).__name__
        _LOG.error("batch_failed id=%s error=%s at=%s", batch.id, error, place_of(problem))
        told = f"The server itself failed at this batch ({error}). hint: its log has more; send the batch again"
        await self._fail(batch, Problem("internal_error", told))

    async def _turn(self, model: str) -> None:
        """All lines that are left for a model, until something else is to be done."""
        looked_at = self._now()
        while True:
            if self._now() >= looked_at + _END_EVERY_S:
                looked_at = self._now()
                await self._give_back_what_ended()
                await self._end_what_is_done()
            free = self._machine.width(model) - len(self._running)
            if free > 0 and self._may_begin(model):
                lines = await asyncio.to_thread(self._store.left, model, free, but=list(self._running))
                if not lines and not self._running:
                    return
                for line in self._company(lines) if self._may_begin(model) else ():
                    self._begin(line)
            if not self._running:
                if self._news.is_set() or self._stopping:
                    return
                if self._now() < self._not_before.get(model, 0.0):
                    return  # others may have their turn
                await self._woken(_LOOK_S)
                continue
            await self._something_happens()
            if self._news.is_set():
                await self._give_back_what_ended()
                return

    def _company(self, lines: list[LeftLine]) -> list[LeftLine]:
        """Those that may run beside what runs: one that has failed runs alone, so that it fails alone."""
        if any(one.line.tries for one in self._running.values()):
            return []
        if lines and lines[0].tries:
            return [] if self._running else lines[:1]
        return [line for line in lines if not line.tries]

    def _may_begin(self, model: str) -> bool:
        quiet_s = _QUIET_RESIDENT_S if self._machine.resident(model) else _QUIET_LOAD_S
        waited = self._machine.quiet_s() >= quiet_s
        return waited and not self._stopping and self._now() >= self._not_before.get(model, 0.0)

    async def _something_happens(self) -> None:
        news = asyncio.create_task(self._news.wait())
        try:
            tasks = {news, *(one.task for one in self._running.values())}
            await asyncio.wait(tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    async def _give_back_what_ended(self) -> None:
        """Lines of batches that do not run any more."""
        batches = await asyncio.to_thread(self._store.open_batches)
        now = self._clock()
        going_on = {one.place for one in batches if one.state == "in_progress" and one.expires_at > now}
        self._withdraw([one for one in self._running.values() if one.line.batch not in going_on])

    # Lines

    def _begin(self, line: LeftLine) -> None:
        running = self._running[(line.batch, line.n)] = _Running(line)
        running.task = asyncio.create_task(self._line(running))

    async def _line(self, running: _Running) -> None:
        line = running.line
        try:
            answer = await self._ask(line)
            running.asking = False
            await self._keep(line, answer)
        except asyncio.CancelledError:
            self._count("given_back")
            raise
        except ApiError as problem:
            self._not_before[line.model] = self._now() + _TROUBLE_S
            _LOG.warning("batch_line_unwritten reason=%s", problem.code)
        finally:
            del self._running[(line.batch, line.n)]

    async def _keep(self, line: LeftLine, answer: Answer) -> None:
        """Raises ApiError 503 where it cannot be written: the line is asked once more."""
        if answer.short_of is not None:
            self._not_before[line.model] = self._now() + _ROOM_S
            self._count("given_back")
            await self._complain(line, answer.short_of)
            return
        if answer.may_pass and line.tries + 1 < MOST_TRIES:
            await asyncio.to_thread(self._store.tried, line)
            self._not_before[line.model] = self._now() + _AGAIN_S[min(line.tries, len(_AGAIN_S) - 1)]
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

    def _withdraw(self, running: list[_Running]) -> None:
        for one in running:
            if one.asking:
                one.asking = False
                one.task.cancel()


def _messages(problems: Mapping[str, Problem]) -> dict[str, str]:
    """By model; which line met it first is no news."""
    return {model: one.message for model, one in problems.items()}
