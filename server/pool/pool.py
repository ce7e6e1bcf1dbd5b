"""The asyncio shell around the scheduler: performs its actions, feeds back what happened, gives each job its stream.

Owns the workers and the live jobs. Decides nothing: which model is loaded and which job is next comes from
`server.scheduling.scheduler`, how a model is loaded from `server.memory.placement`. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Final

from backends.messages import Delta, Failed, Finished, Started
from backends.worker import Exit, Timeouts, Worker
from server.memory.capacity import Asked, Capacity, who_may_leave
from server.memory.memory import Memory, open_memory
from server.memory.prices import Prices
from server.metrics import REJECTIONS, RequestMeter
from server.pool import limits
from server.pool.live import Live
from server.pool.loader import Loader, LoadRefusedError
from server.pool.read_ahead import ReadAhead
from server.pool.resident import PoolError, Resident
from server.pool.spare import Spare
from server.pool.status import MemoryStatus, ModelInfo, QueueStatus, Status
from server.pool.stream import Stream, Waiting
from server.pool.telling import Teller, why
from server.scheduling.decisions import Abort, Action, CancelLoad, Dispatch, Drain, Load, ModelState, Reject, Unload
from server.scheduling.scheduler import Rules, Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backends.messages import ErrorCode, Event, Job, LoadModel, Ready, Step
    from server.metrics import Metrics
    from server.settings.catalog import Catalog, CatalogEntry
    from server.settings.config import Settings

__all__ = ["ModelInfo", "ModelState", "Pool", "PoolError", "Status", "Stream"]

_LAST_STOP_S: Final = 1.0
"""For workers to exit by themselves when the whole server does."""
_LOG = logging.getLogger("onecard.pool")


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
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._timeouts = timeouts
        self._residents = {e.name: Resident(e, metrics.model(e.name)) for e in catalog.entries}
        self._prices = Prices({e.name: e for e in catalog.entries})
        models = [limits.model_rules(e) for e in catalog.entries]
        self._scheduler = Scheduler(models, rules or limits.rules(settings), self._prices)
        self._loader: Loader | None = None
        self._live: dict[str, Live] = {}
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._lookout: asyncio.Task[None] | None = None
        self._dry: asyncio.Task[None] | None = None
        self._closed = False
        self._teller = Teller()
        self._tell, self.on_change = self._teller.tell, self._teller.on_change
        metrics.on_render.append(self._publish)
        with_gguf = any(entry.backend == "gguf" for entry in catalog.entries)
        self._spare = Spare("gguf", enabled=settings.scheduler.spare_worker and with_gguf)
        self.on_change += [self._spare.on_change, ReadAhead({e.name: e.path for e in catalog.entries}).on_change]

    # Life

    async def start(self) -> None:
        """Choose the device and the budget, look at the models' files, begin with what is to be preloaded.

        Raises DeviceError.
        """
        memory = await open_memory(self._settings.memory)
        self._loader = self._prices.loader = Loader(memory, self._timeouts, self._spare)
        memory.on_budget_change.append(self._budget_changed)
        self._tell("started", device=memory.device, budget_bytes=memory.ledger.budget_bytes)
        self._spawn(self._inspect_all(self._loader))
        memory.pids = lambda: [r.worker.pid for r in self._residents.values() if r.worker and r.worker.pid]
        self._lookout = asyncio.create_task(memory.keep_looking())
        for name, resident in self._residents.items():
            if resident.entry.config.preload:
                self._perform(self._scheduler.load(name, self._clock()))
        self._spare.prepare()

    @property
    def draining(self) -> bool:
        """True once no new jobs are taken."""
        return self._scheduler.draining

    @property
    def ready(self) -> bool:
        """Whether a request for at least one model has a chance."""
        now = self._clock()
        usable = any(self._scheduler.view(name, now).quarantined_until is None for name in self._residents)
        return self._loader is not None and not self.draining and usable

    def begin_drain(self) -> None:
        """Refuse new jobs from now on; idempotent."""
        if not self.draining:
            self._tell("draining", running=self._scheduler.n_running, waiting=self._scheduler.n_waiting)
            self._perform(self._scheduler.drain(self._clock()))

    async def close(self, grace_s: float) -> None:
        """Let what runs finish for a while, fail the rest, stop every worker; nothing is left when it returns."""
        self.begin_drain()
        await self._spare.close()
        try:
            await asyncio.wait_for(self._quiet.wait(), grace_s)
        except TimeoutError:
            self._expel()
        for regular in (self._timer, self._lookout, self._dry):
            if regular is not None:
                regular.cancel()
        while self._tasks or any(r.worker for r in self._residents.values()):
            workers = [r.worker for r in self._residents.values() if r.worker is not None]
            await asyncio.gather(*(worker.stop(within_s=_LAST_STOP_S) for worker in workers))
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._closed:
            self._closed = True
            self._tell("stopped")

    # What the HTTP side asks

    def submit(self, entry: CatalogEntry, job: Job, *, priority: int = 0, keep_alive_s: float | None = None) -> Stream:
        """Take a job; whatever is wrong with it comes as its `Failed` event. `keep_alive_s` lasts to the next job."""
        resident, now = self._residents[entry.name], self._clock()
        stream = Stream(
            entry.name,
            job.id,
            cancel=self._cancel,
            loading=lambda: self._is_loading(entry.name),
            outlook=lambda: self._outlook(resident, job.id),
        )
        live = Live(job, entry.name, stream, RequestMeter(resident.metrics, now), now)
        if job.id in self._live:
            stream.push(Failed(id=job.id, code="internal_error", message="two requests have the same id"))
            return stream
        self._live[job.id] = live
        self._quiet.clear()
        actions = self._scheduler.submit(
            job.id,
            entry.name,
            sequences=job.sequences,
            priority=priority + entry.config.priority,
            keep_alive_s=keep_alive_s,
            now=now,
        )
        self._perform(actions)
        return stream

    def info(self, name: str) -> ModelInfo:
        """What is known of a model; never loads it."""
        resident = self._residents[name]
        view = self._scheduler.view(name, self._clock())
        header, problem = self._loader.known(name) if self._loader else (None, None)
        return ModelInfo(view.state, resident.ready, header, view.last_error or problem)

    def status(self) -> Status:
        """Everything at this moment; never loads anything."""
        now = self._clock()
        memory = self._memory_status()
        ledger = self._loader.memory.ledger if self._loader else None
        models = [
            resident.status(self._scheduler.view(name, now), ledger.booking(name) if ledger else None, now)
            for name, resident in self._residents.items()
        ]
        queue = [QueueStatus(model=m.name, waiting=m.waiting) for m in models if m.waiting]
        return Status(memory=memory, models=models, queue=queue)

    async def capacity(self, name: str, asked: Asked) -> Capacity:
        """What a load of the model would come to; loads nothing. Raises HeaderError."""
        residents = who_may_leave(self.status().models, self._prices.held_bytes, but=name)
        assert self._loader is not None
        return await self._loader.capacity(self._residents[name].entry, asked, residents)

    async def load(self, name: str) -> None:
        """Make a model resident. Raises PoolError."""
        view = self._scheduler.view(name, self._clock())
        if view.state is ModelState.READY:
            return
        if self.draining or view.quarantined_until is not None:
            code: ErrorCode = "draining" if self.draining else "quarantined"
            raise PoolError(code, view.last_error or "the server is shutting down")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._residents[name].load_waiters.append(waiter)
        self._perform(self._scheduler.load(name, self._clock()))
        await waiter

    async def unload(self, name: str) -> None:
        """Let a model finish what it runs and go."""
        if self._scheduler.view(name, self._clock()).state is ModelState.UNLOADED:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._residents[name].gone_waiters.append(waiter)
        self._perform(self._scheduler.unload(name, self._clock()))
        await waiter

    # What workers report

    def on_progress(self, worker: Worker, fraction: float) -> None:
        """A share of a load is done."""
        self._residents[worker.spec.name].loaded = fraction

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """A model is loaded."""
        name, now = worker.spec.name, self._clock()
        resident = self._residents[name]
        resident.ready, resident.ready_at = ready, now
        load_s = now - resident.load_started_at
        booking = self._memory().ledger.settle(name, ready.measured_bytes, ready.parts)
        if self._loader is not None:
            self._spawn(self._learn(self._loader, worker.spec, ready))
        if (ratio := booking.error_ratio) is not None:
            self._metrics.prediction_error[resident.entry.backend].observe(ratio)
        resident.count_ready(booking, load_s)
        self._tell(
            "loaded",
            model=name,
            seconds=round(load_s, 3),
            context=ready.context,
            parallel=ready.parallel,
            gpu_layers=f"{ready.gpu_layers}/{ready.n_layers}",
            measured_bytes=ready.measured_bytes,
            predicted_ratio="unknown" if ratio is None else round(ratio, 3),
            pid=worker.pid,
        )
        self._prices.forget(name)
        self._perform(self._scheduler.on_ready(name, parallel=ready.parallel, now=now))
        resident.tell_loaded()

    def on_step(self, worker: Worker, step: Step) -> None:
        """Hand out the events of one engine step."""
        now = self._clock()
        resident = self._residents[worker.spec.name]
        resident.metrics.step(step)
        resident.pace.count(step.n_decode, now)
        for event in step.events:
            live = self._live.get(event.id)
            if live is None:
                continue
            if isinstance(event, Delta):
                live.answered = True
                live.meter.delta(event, now)
                live.stream.push(event)
            else:
                self._hand_out(live, event, now)

    def on_exit(self, worker: Worker, how: Exit) -> None:
        """A worker is gone: its bytes are free, its jobs are answered, and the scheduler may start another."""
        name, now = worker.spec.name, self._clock()
        resident = self._residents[name]
        was_ready = worker.ready is not None
        resident.worker = None
        freed_bytes = self._prices.held_bytes(name)
        self._memory().ledger.release(name)
        self._prices.forget(name)
        orphans = [(live, failed) for failed in how.failed if (live := self._live.get(failed.id)) is not None]
        retry = frozenset(
            live.job.id
            for live, failed in orphans
            if failed.code in ("worker_crashed", "out_of_memory") and not live.answered
        )
        for live, failed in orphans:
            if failed.id not in retry:
                self._finish(live, failed)
        self._tell(
            resident.count_exit(how, was_ready=was_ready),
            model=name,
            freed_bytes=freed_bytes,
            **({"code": how.code, "reason": how.message} if how.code else {}),
        )
        error = None if how.code is None else (how.code, how.message)
        self._perform(self._scheduler.on_gone(name, now=now, error=error, retry=retry))
        resident.tell_gone(how.code or "cancelled", how.message)

    # How it acts

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch():
                    self._dispatch(action)
                case Load():
                    self._begin_load(self._residents[action.model], action.setbacks)
                case CancelLoad():
                    self._cancel_load(self._residents[action.model])
                case Drain():
                    self._tell("drains", model=action.model, **why(action))
                case Unload():
                    self._begin_unload(action)
                case Reject():
                    self._reject(action)
                case Abort():
                    self._abort(self._live[action.job_id], action)
        self._arm()

    def _dispatch(self, action: Dispatch) -> None:
        now = self._clock()
        live, resident = self._live[action.job_id], self._residents[action.model]
        assert resident.worker is not None
        assert resident.ready is not None
        live.meter.dispatched(now)
        stream = live.stream
        stream.queue_ms = (now - live.submitted_at) * 1000
        stream.gpu_layers = resident.layers_on(self._memory().device)
        if (waited_s := resident.load_wait_s(live.submitted_at)) is not None:
            stream.load_ms = waited_s * 1000
            resident.metrics.swap_wait.observe(waited_s)
        resident.worker.submit(live.job)

    def _begin_load(self, resident: Resident, setbacks: int) -> None:
        resident.load_started_at = self._clock()
        resident.load_cancelled = False
        resident.loaded = 0.0
        need = self._prices.need_bytes(resident.name, setbacks=setbacks)
        figures = {"need_bytes": need} if isinstance(need, int) and need else {}
        again = {"setbacks": setbacks} if setbacks else {}
        self._tell("loading", model=resident.name, **figures, free_bytes=self._prices.free_bytes, **again)
        self._spawn(self._load(resident, setbacks))

    def _cancel_load(self, resident: Resident) -> None:
        self._tell("load_cancelled", model=resident.name, reason="nobody waits for it any more")
        resident.load_cancelled = True
        if resident.worker is not None:
            self._spawn(resident.worker.stop())

    async def _load(self, resident: Resident, setbacks: int) -> None:
        assert self._loader is not None
        usable_bytes = self._prices.usable_bytes(resident.name)
        try:
            resident.worker = await self._loader.start(
                resident.entry, self, usable_bytes=usable_bytes, setbacks=setbacks
            )
            if resident.load_cancelled:
                await resident.worker.stop()
        except LoadRefusedError as refused:
            self._refused(resident, refused.code, refused.message, strike=refused.strike)
        except Exception as error:  # a fault of ours must not leave the model loading for ever
            _LOG.exception("load_error model=%s", resident.name)
            self._refused(resident, "internal_error", f"the load failed ({type(error).__name__})", strike=True)

    def _refused(self, resident: Resident, code: ErrorCode, message: str, *, strike: bool) -> None:
        name = resident.name
        resident.count_load_failure(code)
        self._prices.forget(name)
        self._tell("load_refused", model=name, code=code, reason=message)
        self._perform(self._scheduler.on_gone(name, now=self._clock(), error=(code, message), strike=strike))
        resident.tell_gone(code, message)

    def _begin_unload(self, action: Unload) -> None:
        resident = self._residents[action.model]
        assert resident.worker is not None
        resident.metrics.evictions[action.reason].inc()
        evicted = action.reason in ("room", "ttl", "pressure")
        figures = {**why(action), "freed_bytes": self._prices.held_bytes(action.model)}
        self._tell("evicted" if evicted else "unloading", model=action.model, **figures)
        self._spawn(resident.worker.stop())

    def _reject(self, action: Reject) -> None:
        live = self._live[action.job_id]
        if action.code != "cancelled":
            self._tell(
                "rejected" if action.code in REJECTIONS else "failed",
                model=live.model,
                code=action.code,
                reason=action.message,
            )
        failed = Failed(id=action.job_id, code=action.code, message=action.message, retry_after_s=action.retry_after_s)
        self._finish(live, failed)

    def _abort(self, live: Live, action: Abort) -> None:
        live.abort = live.abort or action
        worker = self._residents[live.model].worker
        if worker is not None:
            worker.cancel(live.job.id)

    def _expel(self) -> None:
        """End every job that is left, as the server's doing and not the client's."""
        for job_id, live in list(self._live.items()):
            live.abort = live.abort or Abort(job_id, "draining", "the server is shutting down")
            self._cancel(job_id)

    def _cancel(self, job_id: str) -> None:
        self._perform(self._scheduler.cancel(job_id, self._clock()))

    def _hand_out(self, live: Live, event: Event, now: float) -> None:
        """Anything but a delta."""
        if isinstance(event, Failed) and event.code == "out_of_memory" and not live.answered and live.abort is None:
            again = (event.code, event.message)
            self._perform(self._scheduler.on_terminal(event.id, now, finished=False, again=again))
        elif isinstance(event, Finished | Failed):
            self._finish(live, event)
            self._perform(self._scheduler.on_terminal(event.id, now, finished=isinstance(event, Finished)))
        elif not isinstance(event, Started) or not live.meter.started:  # a second run starts silently
            live.answered = live.answered or not isinstance(event, Started)
            live.meter.other(event, now)
            live.stream.push(event)

    def _finish(self, live: Live, event: Finished | Failed) -> None:
        """The one place where a job ends."""
        if live.abort is not None and isinstance(event, Failed):
            event = Failed(id=event.id, code=live.abort.code, message=live.abort.message)
        if live.stream.queue_ms is None:
            live.stream.queue_ms = (self._clock() - live.submitted_at) * 1000
        del self._live[event.id]
        live.meter.other(event, self._clock())
        live.stream.push(event)
        if not self._live:
            self._quiet.set()

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

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _inspect_all(self, loader: Loader) -> None:
        for resident in self._residents.values():
            with contextlib.suppress(LoadRefusedError):
                await loader.inspect(resident.entry)
            self._prices.forget(resident.name)
        self._dry = asyncio.create_task(self._ask_dry(loader))

    async def _ask_dry(self, loader: Loader) -> None:
        await loader.ask_dry(resident.entry for resident in self._residents.values())
        for name in self._residents:
            self._prices.forget(name)

    async def _learn(self, loader: Loader, spec: LoadModel, ready: Ready) -> None:
        await loader.learn(spec, ready)
        self._prices.forget(spec.name)

    def _budget_changed(self) -> None:
        memory = self._memory().status()
        figures = {"budget_bytes": memory.budget_bytes, "reserved_bytes": memory.reserved_bytes}
        self._tell("budget", **figures, over_bytes=self._prices.over_bytes)
        self._perform(self._scheduler.on_tick(self._clock()))

    def _is_loading(self, name: str) -> bool:
        return self._scheduler.view(name, self._clock()).state is ModelState.LOADING

    def _outlook(self, resident: Resident, job_id: str) -> Waiting | None:
        now = self._clock()
        outlook = self._scheduler.outlook(job_id, now)
        if outlook is None:
            return None
        if not self._is_loading(resident.name):
            return Waiting(outlook.position + 1, outlook.wait_s, None)
        return Waiting(outlook.position + 1, resident.load_left_s(now, outlook.wait_s), resident.loaded)

    def _memory_status(self) -> MemoryStatus:
        if self._loader is None:
            return MemoryStatus(device="", budget_bytes=0, reserved_bytes=0, other_bytes=0)
        return self._loader.memory.status().beside(self._spare.resident_bytes)

    def _publish(self) -> None:
        """Set the gauges that mirror state, when somebody looks."""
        now = self._clock()
        for name, resident in self._residents.items():
            view = self._scheduler.view(name, now)
            resident.metrics.publish(view.state, running=view.running, waiting=view.waiting)
        memory = self._memory_status()
        if memory.device:
            self._metrics.publish_memory(memory)

    def _memory(self) -> Memory:
        assert self._loader is not None
        return self._loader.memory
