"""Runs fine-tuning jobs one after the other, while no request needs their memory.

Owns which job runs and when; what it holds is `server.pool.training`'s, what its process says is kept by `session`.
A job that had to go comes back where its last checkpoint is. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from typing import TYPE_CHECKING, Final, Protocol

from backends.plan import Amount, Footprint, Parts
from server.errors import ApiError, place_of
from server.pool.room import NoRoomError
from server.pool.status import TrainingStatus
from server.tuning.disk import short_of
from server.tuning.endings import Endings, already_ended
from server.tuning.job import Job, JobRecord
from server.tuning.preparing import Base, UnfitError, prepare
from server.tuning.recipe import Machine
from server.tuning.session import Crashed, Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from backends.messages.training import TrainStep
    from server.files.store import FileStore
    from server.pool.training import TrainingTenant
    from server.settings.sections import TrainingSection
    from server.tuning.preparing import Prepared
    from server.tuning.results import Results
    from server.tuning.session import End
    from server.tuning.store import TuningStore

_LOOK_S: Final = 0.25
"""While jobs wait for a quiet moment."""
_HOLD_S: Final = 1.0
"""A job that stands still goes on when no request has come for so long."""
_QUIET_S: Final = 2.0
"""Before a job begins that only trains when no request is answered."""
_TROUBLE_S: Final = 10.0
_LOG: Final = logging.getLogger("onecard.training")


class Counts(Protocol):
    """Who is told of figures."""

    def count_training_end(self, outcome: str) -> None:
        """A job or a process of one has ended."""

    def on_training_step(self, step: TrainStep | None) -> None:
        """A step was done; None: none is being done."""


class TuningRunner:
    """One per server."""

    def __init__(
        self,
        store: TuningStore,
        results: Results,
        files: FileStore,
        tenant: TrainingTenant,
        *,
        base_of: Callable[[str], Awaitable[Base]],
        machine: Callable[[], Machine],
        rules: Callable[[], TrainingSection],
        module: str,
        clock: Callable[[], float],
        counts: Counts,
    ) -> None:
        """`module` is the process that trains; `base_of` raises UnfitError; `clock` gives seconds since 1970."""
        self._store, self._results, self._files, self._tenant = store, results, files, tenant
        self._base_of, self._machine, self._rules = base_of, machine, rules
        self._module, self._clock, self._counts = module, clock, counts
        self._endings = Endings(store, results, counts, clock)
        self._news = asyncio.Event()
        self._jobs: list[Job] = []
        self._session: Session | None = None
        self._live: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._why_not: dict[str, str] = {}
        self._put_off: dict[str, tuple[float, str]] = {}
        """Until when a job is not begun, and why."""
        self._stopping = False
        self._left_over = False
        """What an earlier run has made is yet to be served."""
        self._ended_since = False
        """What jobs have left that ended without a result is yet to be removed."""
        tenant.told = self._told

    async def start(self, *, at_once: bool) -> None:
        """Begin; `at_once` where an earlier run may have left something."""
        if at_once:
            self._left_over = self._ended_since = True
            try:
                await self._take_up()
            except ApiError as problem:
                _LOG.warning("training_jobs_unread reason=%r", problem.message)
            self._news.set()
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """Jobs have come or changed."""
        self._news.set()

    def stop(self) -> None:
        """Begin no job more, and have the one that runs save and go: the server is going down."""
        self._stopping = True
        self._have_leave(self._session, "shutdown")

    async def close(self, grace_s: float) -> None:
        """No process is left when it returns; one that runs may save within so many seconds."""
        self.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._live is not None:
            await asyncio.wait({self._live}, timeout=grace_s)
            if self._session is not None:
                self._session.end("shutdown")
            await asyncio.wait({self._live})

    def on_job(self, _model: str, _waits: bool) -> None:
        """A client's request has come."""
        if self._session is not None and self._rules().policy == "idle-only":
            self._session.hold()

    def withdraw(self, job: Job) -> None:
        """A job was paused or cancelled: its process leaves. Or it was resumed."""
        if self._session is not None and self._session.job.id == job.id:
            if job.state == "paused":
                self._have_leave(self._session, "pause")
            elif job.state == "cancelled":  # one that is resumed meanwhile saves, and is begun again
                self._session.end("cancel")
        elif job.state == "cancelled":
            self._counts.count_training_end("cancelled")
            self._ended_since = True
        self.wake()

    def waiting_for(self, job: Job) -> str | None:
        """Why a queued job does not run."""
        if self._session is not None and self._session.job.id != job.id:
            return f"{self._session.job.id} runs"
        return self._why_not.get(job.id)

    def _told(self) -> TrainingStatus | None:
        """What the job that runs is at."""
        session = self._session
        if session is None:
            return None
        record, last, started = session.job.record, session.last, session.started
        return TrainingStatus(
            id=session.job.id,
            model=record.model,
            stands_still=session.held,
            step=0 if last is None else last.step,
            steps=0 if started is None else started.steps,
            loss=None if last is None else last.loss,
            seconds_left=None if last is None else round(last.seconds_left, 1),
            device_bytes=record.device_bytes,
            host_bytes=record.host_bytes,
        )

    # The walk

    async def _take_up(self) -> None:
        """Serve what was made; each job for itself. Raises ApiError."""
        for job in await asyncio.to_thread(self._store.succeeded):
            try:
                await self._results.serve(job)
            except Exception as problem:  # one that cannot be served holds up no other
                _LOG.warning(
                    "tuned_model_unserved id=%s error=%s at=%s", job.id, type(problem).__name__, place_of(problem)
                )
        self._left_over = False

    async def _sweep(self) -> None:
        """Raises ApiError."""
        self._ended_since = False
        try:
            for folder in await asyncio.to_thread(self._store.leftovers):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        except BaseException:
            self._ended_since = True
            raise

    async def _requeue(self, job: Job) -> None:
        """One that no process of ours runs: an earlier server has ended, or its end could not be written down."""
        with already_ended():
            job = await asyncio.to_thread(self._store.change, job.id, "queued")
            told = "The training was broken off; the job goes on from its last checkpoint"
            await asyncio.to_thread(self._store.tell, job, told, level="warn")

    async def _run(self) -> None:
        await self._news.wait()
        trouble: str | None = None
        while True:
            try:
                wait_s = await self._once()
                trouble = None
            except ApiError as problem:
                if trouble != problem.code:
                    _LOG.warning("training_paused reason=%s", problem.code)
                trouble, wait_s = problem.code, _TROUBLE_S
            except Exception as problem:  # a fault of ours must not end all jobs for good
                at = place_of(problem)
                if trouble != at:
                    _LOG.error("training_paused error=%s at=%s", type(problem).__name__, at)
                trouble, wait_s = at, _TROUBLE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            if trouble is not None:
                self._news.set()  # what was not done is looked at again

    async def _once(self) -> float | None:
        """What is to be done now; for how long there is nothing more. Raises ApiError."""
        if self._left_over:
            await self._take_up()
        if self._ended_since:
            await self._sweep()
        if self._news.is_set():
            self._news.clear()
            await self._look()
        self._tenant.exclusive = self._rules().policy == "exclusive"
        if self._session is not None:
            self._steer(self._session)
        elif not self._stopping:
            await self._begin_next()
        waits = self._session is not None or any(job.state == "queued" for job in self._jobs)
        return _LOOK_S if waits else None

    async def _look(self) -> None:
        """See which jobs there are, and ready those that are not. Raises ApiError."""
        jobs = await asyncio.to_thread(self._store.open_jobs)
        for job in jobs:
            if job.state == "running" and self._session is None:
                await self._requeue(job)
                self.wake()
            elif job.state == "validating_files":
                await self._validate(job)
        self._jobs = jobs

    def _steer(self, session: Session) -> None:
        """Have the running job go on where it stands still for no reason more, or leave where it has to."""
        if self._tenant.pressed and not self._tenant.exclusive:
            self._have_leave(session, "pressure")
        elif session.held and (self._rules().policy != "idle-only" or self._tenant.quiet_s >= _HOLD_S):
            session.go_on()

    def _have_leave(self, session: Session | None, why: str) -> None:
        if session is not None and session.why_leaving is None:
            step = 0 if session.last is None else session.last.step
            _LOG.info("training_leaves id=%s for=%s step=%s", session.job.id, why, step)
            session.leave(why, self._rules().leave_within_s)

    # Before it runs

    async def _validate(self, job: Job) -> None:
        """Raises ApiError."""
        try:
            base = await self._base_of(job.record.model)
            prepared: Prepared = await asyncio.to_thread(
                prepare, job, base, self._machine(), files=self._files, store=self._store
            )
        except UnfitError as problem:
            await self._endings.fail(job, problem.error)
        else:
            await self._queue(job, prepared)
        finally:
            await self._endings.sweep(job.id)  # it may have been cancelled meanwhile

    async def _queue(self, job: Job, prepared: Prepared) -> None:
        """Raises ApiError."""

        def edit(record: JobRecord) -> None:
            record.recipe, record.n_examples = prepared.recipe, prepared.n_examples
            record.device_bytes, record.host_bytes = prepared.device_bytes, prepared.host_bytes
            record.disk_bytes = prepared.disk_bytes

        with already_ended():
            job = await asyncio.to_thread(self._store.change, job.id, "queued", edit)
            told = f"Files validated: {prepared.n_examples} examples. The job is queued"
            await asyncio.to_thread(self._store.tell, job, told)
            self.wake()

    async def _begin_next(self) -> None:
        self._why_not.clear()
        queued = [job for job in self._jobs if job.state == "queued"]
        for n, job in enumerate(queued):
            why = self._why_not_now(job)
            if why is None and await self._begin(job):
                return
            if why is not None:
                self._why_not[job.id] = why
            if not self._is_put_off(job):  # none overtakes any other one
                self._why_not.update((other.id, f"{job.id} comes first") for other in queued[n + 1 :])
                return

    def _why_not_now(self, job: Job) -> str | None:
        rules, quiet_s = self._rules(), self._tenant.quiet_s
        if self._is_put_off(job):
            return self._put_off[job.id][1]
        if rules.policy == "idle-only" and quiet_s < _QUIET_S:
            return "requests are being answered"
        if self._tenant.fits_beside(_amount(job)) or rules.policy == "exclusive" or quiet_s >= rules.idle_after_s:
            return None
        return f"models hold its memory that were in use within the last {rules.idle_after_s:g} s"

    async def _begin(self, job: Job) -> bool:
        """Whether it has the disk and the memory, and runs. Raises ApiError."""
        short = await asyncio.to_thread(short_of, self._store.folder(job.id), job.record.disk_bytes)
        if short is not None:
            self._delay(job, _QUIET_S, short)
            return False
        session = Session(job, self._store, self._module, self._counts.on_training_step)
        record = job.record
        device, host = (Parts(further={"training": n}) for n in (record.device_bytes, record.host_bytes))
        try:
            await self._tenant.enter(job.id, Footprint(device, host), lambda: self._have_leave(session, "room"))
        except NoRoomError as problem:
            why = "other programs hold its memory" if problem.elsewhere else "models or leases hold its memory"
            self._delay(job, _QUIET_S, why)
            return False
        try:
            with already_ended():
                session.job = await asyncio.to_thread(self._store.change, job.id, "running", self._begun)
                self._session = session
                self._put_off.pop(job.id, None)
                self._live = asyncio.create_task(self._session_of(session))
                return True
        finally:
            if self._session is not session:
                self._tenant.go()
        self.wake()
        return False

    def _delay(self, job: Job, seconds: float, why: str) -> None:
        self._put_off[job.id] = (self._now() + seconds, why)
        self._why_not[job.id] = why

    def _is_put_off(self, job: Job) -> bool:
        return job.id in self._put_off and self._now() < self._put_off[job.id][0]

    def _begun(self, record: JobRecord) -> None:
        record.started_at = record.started_at or int(self._clock())

    # While and after it runs

    async def _session_of(self, session: Session) -> None:
        end: End
        try:
            end = await session.run(self._on_pid)
        except (OSError, ApiError) as problem:
            end = Crashed(problem.message if isinstance(problem, ApiError) else problem.strerror or "no process")
        except BaseException as problem:
            _LOG.error("training_error error=%s at=%s", type(problem).__name__, place_of(problem))
            end = Crashed("an error in onecard")
        self._tenant.go()
        self._counts.on_training_step(None)
        again_s = _TROUBLE_S
        try:
            again_s = await self._endings.after(session.job.id, end, session.why_leaving)
        except ApiError as problem:
            _LOG.warning("training_end_unwritten id=%s reason=%s", session.job.id, problem.code)
        finally:
            if again_s:
                self._delay(session.job, again_s, "it failed a moment ago, and is begun again soon")
            self._session = None
            self.wake()

    def _on_pid(self, pid: int) -> None:
        self._tenant.pid = pid

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _amount(job: Job) -> Amount:
    return Amount(job.record.device_bytes, job.record.host_bytes)
