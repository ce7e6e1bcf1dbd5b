"""The asyncio shell around the scheduler: puts its rooms together, has its actions performed, feeds back what happened.

Decides nothing: which model is loaded and which job is next comes from `server.scheduling.scheduler`, how a model is
loaded from `server.memory.placement`. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final, assert_never

from backends.border.worker import Exit, Timeouts, Worker
from backends.registry import BACKENDS
from server.memory.budget import MemoryBudget
from server.memory.opening import open_memory
from server.memory.placement import memory_words
from server.pool import limits
from server.pool.changes import Changes
from server.pool.event_log import EventLog
from server.pool.jobs import Jobs
from server.pool.leases import Leases
from server.pool.loader import Loader
from server.pool.measuring import measure_when_idle
from server.pool.moves import Moves
from server.pool.overview import Overview
from server.pool.parts import PoolParts
from server.pool.read_ahead import ReadAhead
from server.pool.resident import NO_LONGER, PoolError, Resident
from server.pool.room import RoomMaker
from server.pool.status import ModelInfo, Status
from server.pool.stream import Stream
from server.pool.template_keeper import TemplateKeeper
from server.pool.training import TrainingTenant
from server.scheduling.budget import Refused
from server.scheduling.decisions import (
    Abort,
    Action,
    CancelLoad,
    Dispatch,
    Drain,
    Forget,
    Grow,
    Load,
    ModelState,
    Preempt,
    Reject,
    Stay,
    Unload,
    UnloadReason,
)
from server.scheduling.scheduler import Rules, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.messages import ErrorCode, Job, Ready
    from server.metrics import Metrics
    from server.settings.catalog import Catalog, CatalogChange, CatalogEntry
    from server.settings.config import Settings
    from server.traces import Traces

__all__ = ["ModelInfo", "ModelState", "Pool", "PoolError", "Status", "Stream"]

_LAST_STOP_S: Final = 1.0
"""For workers to exit by themselves when the whole server does."""


class Pool:
    """All models, all jobs."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
        rules: Rules | None = None,
        traces: Traces | None = None,
    ) -> None:
        self._settings = settings
        self._timeouts = timeouts
        self._clock = clock
        budget = MemoryBudget({e.name: e for e in catalog.entries})
        models = [limits.model_rules(e) for e in catalog.entries]
        self._own_rules = rules
        self._scheduler = Scheduler(models, rules or limits.rules(settings), budget)
        self._residents = {e.name: Resident(e, metrics.model(e.name)) for e in catalog.entries}
        event_log = EventLog()
        self.on_change = event_log.on_change
        self._parts = PoolParts(
            self._residents, self._scheduler, budget, metrics, event_log, clock, self._perform, traces
        )
        wanted = catalog.backends if settings.scheduler.template_process else set()
        self._template_processes = {name: TemplateKeeper(name, enabled=name in wanted) for name in BACKENDS}
        self._overview = Overview(self._parts, self._template_processes.values())
        self._jobs = Jobs(self._parts, self._overview)
        self.on_step, self.foreground = self._jobs.on_step, self._jobs.foreground
        self._moves = Moves(self._parts, self)
        self._changes = Changes(self._parts, self._moves)
        self.on_change.append(ReadAhead(lambda name: self._residents[name].entry.path).on_change)
        self.tell = self._parts.tell
        self.info, self.status, self.capacity = self._overview.info, self._overview.status, self._overview.capacity
        self.why_not_grow = self._overview.why_not_grow
        self.leases = Leases(self._parts, lambda name: self.unload(name, reason="lease"))
        room = RoomMaker(self._parts, lambda name: self.unload(name, reason="training"))
        self.training = TrainingTenant(self._parts, room, self.foreground)
        self._overview.training = lambda: self.training.told()
        self._overview.unknown_names = lambda: catalog.unknown_names
        self._timer: asyncio.TimerHandle | None = None
        self._beside: list[asyncio.Task[None]] = []
        self._closed = False

    # Life

    async def start(self) -> None:
        """Choose the device and the budgets, look at the models' files, begin with what is to be preloaded.

        Raises DeviceError.
        """
        memory = await open_memory(self._settings.memory, n_models=len(self._residents))
        budget = self._parts.budget
        budget.settle_on(memory)
        memory.guest = self.training
        self._parts.loader = Loader(memory, budget, self._timeouts, self._template_processes)
        memory.on_budget_change.append(self._budget_changed)
        beside = {"host_budget_bytes": memory.ledger.host.budget_bytes} if memory.device == "cuda" else {}
        self._parts.tell("started", device=memory.device, budget_bytes=memory.account.budget_bytes, **beside)
        for process in self._template_processes.values():
            process.prepare()
        self._parts.spawn(self._look_at_files(list(self._residents.values())))
        memory.pids = lambda: [*self._worker_pids(), *([self.training.pid] if self.training.pid else [])]
        self._beside.append(asyncio.create_task(memory.keep_looking()))
        self._beside.append(asyncio.create_task(measure_when_idle(self._parts)))

    @property
    def started(self) -> bool:
        """True once there are budgets."""
        return self._parts.loader is not None

    @property
    def draining(self) -> bool:
        """True once no new jobs are taken."""
        return self._scheduler.draining

    @property
    def ready(self) -> bool:
        """Whether a request for at least one model has a chance."""
        now = self._clock()
        usable = any(not self._scheduler.paused(name, now) for name in self._residents)
        return self._parts.loader is not None and not self.draining and usable

    def begin_drain(self) -> None:
        """Refuse new jobs from now on; idempotent."""
        if not self.draining:
            self._parts.tell("draining", running=self._scheduler.n_running, waiting=self._scheduler.n_waiting)
            self._perform(self._scheduler.drain(self._clock()))
            for name, resident in self._residents.items():
                if self._scheduler.state(name) is ModelState.UNLOADED:
                    resident.tell_gone("draining", "the server is shutting down")

    async def close(self, grace_s: float) -> None:
        """Let what runs finish for a while, fail the rest, stop every worker; nothing is left when it returns."""
        self.begin_drain()
        for process in self._template_processes.values():
            await process.close()
        try:
            await asyncio.wait_for(self._jobs.none_left.wait(), grace_s)
        except TimeoutError:
            self._jobs.expel()
        if self._timer is not None:
            self._timer.cancel()
        self.leases.close()
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside)
        tasks = self._parts.tasks
        while tasks or any(r.worker for r in self._residents.values()):
            workers = [r.worker for r in self._residents.values() if r.worker is not None]
            await asyncio.gather(*(worker.stop(within_s=_LAST_STOP_S) for worker in workers))
            await asyncio.gather(*tasks, return_exceptions=True)
        if not self._closed:
            self._closed = True
            if self._parts.loader is not None:
                self._parts.memory.close()
            self._parts.tell("stopped")

    # What the HTTP side asks; `info`, `status` and `capacity` are the overview's

    def submit(self, entry: CatalogEntry, job: Job, *, priority: int = 0, keep_alive_s: float | None = None) -> Stream:
        """Take a job; whatever is wrong with it comes as its `Failed` event. `keep_alive_s` lasts to the next job.

        Raises ApiError 429 where its key has no token left.
        """
        if entry.name not in self._residents:
            return self._jobs.refuse(entry.name, job)
        self._moves.pardon_if_repaired(self._residents[entry.name])
        return self._jobs.submit(self._residents[entry.name], job, priority=priority, keep_alive_s=keep_alive_s)

    async def look(self, name: str) -> None:
        """Look at a model's files now; what is wrong with them is told by `info`."""
        if self._parts.loader is not None and name in self._residents:
            await self._parts.budget.inspect(self._residents[name].entry)

    def change(self, change: CatalogChange, settings: Settings) -> None:
        """The catalogue has become another: models come, change and go, and no accepted job is lost."""
        if self._own_rules is None:
            self._perform(self._scheduler.change_rules(limits.rules(settings), self._clock()))
        added = self._changes.take(change)
        if settings.scheduler.template_process:
            for resident in added:
                self._template_processes[resident.entry.backend].allow()
        if self._parts.loader is not None:
            self._parts.memory.prefix_cache.n_models = max(1, len(self._residents))
            self._parts.spawn(self._look_at_files(added))

    async def load(self, name: str) -> None:
        """Make a model resident. Raises PoolError."""
        if name not in self._residents:
            raise PoolError("model_not_found", NO_LONGER.format(name))
        self._moves.pardon_if_repaired(self._residents[name])
        if self._scheduler.state(name) is ModelState.READY:
            return
        if self.draining or self._scheduler.paused(name, self._clock()):
            code: ErrorCode = "draining" if self.draining else "quarantined"
            raise PoolError(code, self._scheduler.last_error(name) or "the server is shutting down")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._residents[name].load_waiters.append(waiter)
        self._perform(self._scheduler.load(name, self._clock()))
        await waiter

    async def unload(self, name: str, *, reason: UnloadReason = "manual") -> None:
        """Let a model finish what it runs and go."""
        if self._scheduler.state(name) is ModelState.UNLOADED:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._residents[name].gone_waiters.append(waiter)
        self._perform(self._scheduler.unload(name, self._clock(), reason=reason))
        await waiter

    def pin(self, name: str, *, pinned: bool) -> None:
        """Have a model stay when it is idle and never leave for others, or not. Raises PoolError."""
        if name not in self._residents:
            raise PoolError("model_not_found", NO_LONGER.format(name))
        self._changes.pin(self._residents[name], pinned=pinned)

    def _worker_pids(self) -> list[int]:
        return [r.worker.pid for r in self._residents.values() if r.worker and r.worker.pid]

    # What workers report; `on_step` is the jobs' own

    def on_progress(self, worker: Worker, fraction: float) -> None:
        """A share of a load is done."""
        self._moves.on_progress(self._residents[worker.spec.name], fraction)

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """A model is loaded."""
        self._moves.on_ready(worker, ready)

    def on_keeps(self, worker: Worker, max_bytes: int) -> None:
        """A worker has let cached prefixes go, or may hold more."""
        self._parts.memory.on_keeps(worker.spec.name, max_bytes)

    def on_exit(self, worker: Worker, how: Exit) -> None:
        """A worker is gone: first its jobs are answered, then its room is given on."""
        self._moves.on_exit(worker, how, retry=self._jobs.on_exit(how))

    # How it acts

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch():
                    self._jobs.dispatch(action)
                case Load():
                    self._moves.begin_load(self._residents[action.model], action)
                case CancelLoad():
                    self._moves.cancel_load(self._residents[action.model])
                case Drain():
                    self._moves.begin_drain(action)
                case Unload():
                    self._moves.begin_unload(self._residents[action.model], action)
                case Reject():
                    self._jobs.reject(action)
                case Abort():
                    self._jobs.abort(action)
                case Preempt():
                    self._jobs.preempt(action)
                case Grow():
                    self._moves.begin_growth(action)
                case Stay():
                    self._jobs.run_as_it_is(action)
                case Forget():
                    self._changes.forget(action.model)
                case _:
                    assert_never(action)
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the scheduler's next deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._scheduler.next_deadline()
        if deadline is not None:
            delay_s = max(0.0, deadline - self._clock()) + 0.001
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self._scheduler.on_tick(self._clock()))

    async def _look_at_files(self, residents: Sequence[Resident]) -> None:
        """Those of models that are new or have changed; then what of them is to be preloaded."""
        await self._moves.inspect(residents)
        for resident in residents:
            unloaded = self._scheduler.state(resident.name) is ModelState.UNLOADED
            if resident.entry.config.preload and unloaded and resident.is_one_of(self._residents) and not self.draining:
                await self._preload(resident.name)
        if not self.draining:
            self._beside = [task for task in self._beside if not task.done()]
            self._beside.append(asyncio.create_task(self._moves.ask_dry()))

    async def _preload(self, name: str) -> None:
        """Load a model into free room; those that come first stay, and the others wait for a request."""
        budget = self._parts.budget
        need, free = budget.need(name, smaller_by=0), budget.free
        if isinstance(need, Refused):
            self._parts.tell("preload_skipped", model=name, reason=need.message)
        elif not need.within(free):
            device = self._parts.memory.device
            left = f"{memory_words(device, free)} are left beside the others"
            reason = f"it needs {memory_words(device, need)}, and {left}"
            figures = {**self._parts.figures("need", need), **self._parts.figures("free", free)}
            self._parts.tell("preload_skipped", model=name, reason=reason, **figures)
        else:
            with contextlib.suppress(PoolError):  # told where it happened
                await self.load(name)

    def _budget_changed(self) -> None:
        memory = self._parts.memory
        account, host = memory.account, memory.ledger.host
        headroom = {"headroom_bytes": memory.neighbours.headroom_bytes, "other_bytes": memory.other.device}
        beside = {"host_budget_bytes": host.budget_bytes, "host_over_bytes": host.over_bytes, **headroom}
        self._parts.tell(
            "budget",
            budget_bytes=account.budget_bytes,
            reserved_bytes=account.reserved_bytes,
            over_bytes=account.over_bytes,
            **(beside if memory.device == "cuda" else {}),
        )
        self._perform(self._scheduler.on_tick(self._clock()))
