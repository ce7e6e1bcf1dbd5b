"""Runs the lines of batches while nothing else is to be done, one model after the other.

Owns which line is next and when; what becomes of one that is asked is `server.batches.under_way`'s, how it is asked its
caller's. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

from server.batches.ending import Ender
from server.batches.reading import Problem, cut_lines, read_lines
from server.batches.under_way import Answer, LinesUnderWay
from server.errors import ApiError, place_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.batches.records import Batch, LeftLine
    from server.batches.store import BatchStore
    from server.files.store import FileStore

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
        self._store, self._files, self._machine = store, files, machine
        self._clock = clock
        self._ender = Ender(store, files, clock)
        self._under_way = LinesUnderWay(store, ask, count)
        self._news = asyncio.Event()
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
        self._under_way.give_back(lambda _: True)

    async def close(self) -> None:
        """Nothing runs when it returns; what was answered is kept."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await asyncio.gather(*self._under_way.tasks, return_exceptions=True)

    def make_way(self, model: str, waits: bool) -> None:
        """A client's request for a model has come: other models' lines are given back, of its own one if it waits.

        Its own model's engine computes no line while it computes a request.
        """
        self._under_way.make_way(lambda name: self._machine.same(name, model), waits=waits)

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
        self._under_way.forget_all_but({batch.place for batch in batches})
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
        await asyncio.to_thread(self._ender.end_what_is_done, {line.batch for line in self._under_way.lines})

    def _rank(self, model: str) -> tuple[bool, bool, bool]:
        """The lowest has its turn: not one that just failed, the one that has it already, one that is loaded."""
        failing = self._now() < self._under_way.not_before(model)
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
            free = self._machine.width(model) - len(self._under_way.lines)
            if free > 0 and self._may_begin(model):
                lines = await asyncio.to_thread(self._store.left, model, free, but=self._under_way.places)
                if not lines and not self._under_way.lines:
                    return
                for line in self._under_way.company(lines) if self._may_begin(model) else ():
                    self._under_way.begin(line)
            if not self._under_way.lines:
                if self._news.is_set() or self._stopping:
                    return
                if self._now() < self._under_way.not_before(model):
                    return  # others may have their turn
                await self._woken(_LOOK_S)
                continue
            await self._something_happens()
            if self._news.is_set():
                await self._give_back_what_ended()
                return

    def _may_begin(self, model: str) -> bool:
        quiet_s = _QUIET_RESIDENT_S if self._machine.resident(model) else _QUIET_LOAD_S
        waited = self._machine.quiet_s() >= quiet_s
        return waited and not self._stopping and self._now() >= self._under_way.not_before(model)

    async def _something_happens(self) -> None:
        news = asyncio.create_task(self._news.wait())
        try:
            tasks = {news, *self._under_way.tasks}
            await asyncio.wait(tasks, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    async def _give_back_what_ended(self) -> None:
        """Lines of batches that do not run any more."""
        batches = await asyncio.to_thread(self._store.open_batches)
        now = self._clock()
        going_on = {one.place for one in batches if one.state == "in_progress" and one.expires_at > now}
        self._under_way.give_back(lambda line: line.batch not in going_on)
