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

from backends.messages.training import TrainFailed, TrainFinished, TrainLeft
from backends.plan import Amount, Footprint, Parts
from server.errors import ApiError, place_of
from server.pool.room import NoRoomError
from server.pool.status import TrainingStatus
from server.tuning.disk import short_of
from server.tuning.job import Job, JobError, JobRecord, State
from server.tuning.preparing import Base, UnfitError, prepare
from server.tuning.recipe import Machine
from server.tuning.session import Crashed, Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from backends.messages.training import TrainStep
    from server.files.store import FileStore
    from server.pool.training import TrainingTenant
    from server.settings.sections import TrainingSection
    from server.tuning.preparing import Prepared
    from server.tuning.results import Results
    from server.tuning.session import End
    from server.tuning.store import TuningStore

MOST_CRASHES: Final = 3
"""Without a checkpoint between them; then the job has failed."""
_AGAIN_S: Final = (1.0, 5.0, 20.0)
"""Until a job whose process crashed is begun again, by how often it did."""
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
        self._news = asyncio.Event()
        self._jobs: list[Job] = []
        self._session: Session | None = None
        self._live: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._not_before: dict[str, float] = {}
        self._why_not: dict[str, str] = {}
        self._no_disk: dict[str, str] = {}
        self._stopping = False
        tenant.told = self._told

    async def start(self, *, at_once: bool) -> None:
        """Begin; `at_once` where an earlier run may have left something."""
        if at_once:
            await self._take_up()
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
            shutil.rmtree(self._store.folder(job.id), ignore_errors=True)
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
        """What ran when an earlier server ended is queued again; what was made is served."""
        try:
            for job in await asyncio.to_thread(self._store.open_jobs):
                if job.state == "running":
                    job = await asyncio.to_thread(self._store.change, job.id, "queued")
                    told = "The server ended meanwhile; the job goes on from its last checkpoint"
                    await asyncio.to_thread(self._store.tell, job, told, level="warn")
            for job in await asyncio.to_thread(self._store.succeeded):
                await self._results.serve(job)
        except ApiError as problem:
            _LOG.warning("training_jobs_unread reason=%r", problem.message)

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
        if self._news.is_set():
            self._news.clear()
            self._jobs = await asyncio.to_thread(self._store.open_jobs)
            for job in self._jobs:
                if job.state == "validating_files":
                    await self._validate(job)
        self._tenant.exclusive = self._rules().policy == "exclusive"
        if self._session is not None:
            self._steer(self._session)
        elif not self._stopping:
            await self._begin_next()
        waits = self._session is not None or any(job.state == "queued" for job in self._jobs)
        return _LOOK_S if waits else None

    def _steer(self, session: Session) -> None:
        """Have the running job go on where it stands still for no reason more, or leave where it has to."""
        if self._tenant.pressed and not self._tenant.exclusive:
            self._have_leave(session, "pressure")
        elif session.held and (self._rules().policy != "idle-only" or self._tenant.quiet_s >= _HOLD_S):
            session.go_on()

    def _have_leave(self, session: Session | None, why: str) -> None:
        if session is not None:
            session.leave(why, self._rules().leave_within_s)

    # Before it runs

    async def _validate(self, job: Job) -> None:
        try:
            base = await self._base_of(job.record.model)
            prepared: Prepared = await asyncio.to_thread(
                prepare, job, base, self._machine(), files=self._files, store=self._store
            )
        except UnfitError as problem:
            await self._fail(job, problem.error)
            return

        def edit(record: JobRecord) -> None:
            record.recipe, record.n_examples = prepared.recipe, prepared.n_examples
            record.device_bytes, record.host_bytes = prepared.device_bytes, prepared.host_bytes
            record.disk_bytes = prepared.disk_bytes

        with _already_ended():
            job = await asyncio.to_thread(self._store.change, job.id, "queued", edit)
            told = f"Files validated: {prepared.n_examples} examples. The job is queued"
            await asyncio.to_thread(self._store.tell, job, told)
            self.wake()
            return
        await asyncio.to_thread(shutil.rmtree, self._store.folder(job.id), ignore_errors=True)  # it was cancelled

    async def _begin_next(self) -> None:
        self._why_not.clear()
        queued = [job for job in self._jobs if job.state == "queued"]
        for n, job in enumerate(queued):
            why = self._why_not_now(job)
            if why is None and await self._begin(job):
                return
            if why is not None:
                self._why_not[job.id] = why
            if self._not_before.get(job.id, 0.0) <= self._now():  # none overtakes but one whose time has not come
                self._why_not.update((other.id, f"{job.id} comes first") for other in queued[n + 1 :])
                return

    def _why_not_now(self, job: Job) -> str | None:
        rules, quiet_s = self._rules(), self._tenant.quiet_s
        if self._now() < self._not_before.get(job.id, 0.0):
            return self._no_disk.get(job.id, "it failed a moment ago, and is begun again soon")
        self._no_disk.pop(job.id, None)
        if rules.policy == "idle-only" and quiet_s < _QUIET_S:
            return "requests are being answered"
        if self._tenant.fits_beside(_amount(job)) or rules.policy == "exclusive" or quiet_s >= rules.idle_after_s:
            return None
        return f"models hold its memory that were in use within the last {rules.idle_after_s:g} s"

    async def _begin(self, job: Job) -> bool:
        """Whether it has the disk and the memory, and runs. Raises ApiError."""
        short = await asyncio.to_thread(short_of, self._store.folder(job.id), job.record.disk_bytes)
        if short is not None:
            self._not_before[job.id] = self._now() + _TROUBLE_S
            self._no_disk[job.id] = short
            return False
        session = Session(job, self._store, self._module, self._counts.on_training_step)
        record = job.record
        device, host = (Parts(further={"training": n}) for n in (record.device_bytes, record.host_bytes))
        try:
            await self._tenant.enter(job.id, Footprint(device, host), lambda: self._have_leave(session, "room"))
        except NoRoomError as problem:
            self._not_before[job.id] = self._now() + _QUIET_S
            self._why_not[job.id] = "other programs hold its memory" if problem.elsewhere else "models hold its memory"
            return False
        try:
            with _already_ended():
                session.job = await asyncio.to_thread(self._store.change, job.id, "running", self._begun)
                self._session = session
                self._live = asyncio.create_task(self._session_of(session))
                return True
        finally:
            if self._session is not session:
                self._tenant.go()
        self.wake()
        return False

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
        try:
            await self._after(session, end)
        except ApiError as problem:
            _LOG.warning("training_end_unwritten id=%s reason=%s", session.job.id, problem.code)
            self._not_before[session.job.id] = self._now() + _TROUBLE_S
            with contextlib.suppress(ApiError):
                await asyncio.to_thread(self._store.change, session.job.id, "queued")
        finally:
            self._session = None
            self.wake()

    def _on_pid(self, pid: int) -> None:
        self._tenant.pid = pid

    async def _after(self, session: Session, end: End) -> None:
        """Keep what its end means. Raises ApiError."""
        job = await asyncio.to_thread(self._store.get, session.job.id, None)
        _LOG.info("training_ended id=%s end=%s leaving=%s", job.id, type(end).__name__, session.why_leaving)
        if job.state == "cancelled":
            self._counts.count_training_end("cancelled")
            await asyncio.to_thread(shutil.rmtree, self._store.folder(job.id), ignore_errors=True)
        elif isinstance(end, TrainFinished) and job.state == "running":
            await self._succeed(job, end)
        elif isinstance(end, TrainFailed):
            param = "training_file" if end.code == "bad_data" else None
            await self._fail(job, JobError(end.code, end.message, param))
        elif isinstance(end, Crashed) and session.why_leaving is None:
            await self._crashed(job, end)
        elif job.state == "running":
            await self._left(job, session, end)

    async def _succeed(self, job: Job, end: TrainFinished) -> None:
        job = await asyncio.to_thread(self._results.keep, job, end, int(self._clock()))
        await self._results.serve(job)
        for told in (f"New fine-tuned model created: {job.model_name}", "The job has successfully completed"):
            await asyncio.to_thread(self._store.tell, job, told)
        self._counts.count_training_end("succeeded")

    async def _fail(self, job: Job, error: JobError) -> None:
        def edit(record: JobRecord) -> None:
            record.error, record.finished_at = error, int(self._clock())

        with _already_ended():
            job = await asyncio.to_thread(self._store.change, job.id, "failed", edit)
            await asyncio.to_thread(self._store.tell, job, error.message, level="error")
            await asyncio.to_thread(shutil.rmtree, self._store.folder(job.id), ignore_errors=True)
            self._counts.count_training_end("failed")

    async def _crashed(self, job: Job, end: Crashed) -> None:
        crashes = job.record.crashes + 1
        self._counts.count_training_end("crashed")
        if crashes >= MOST_CRASHES:
            told = f"The training's process ended {crashes} times without a checkpoint between, at last by {end.why}."
            await self._fail(job, JobError("training_crashed", told))
            return
        again_s = _AGAIN_S[min(crashes, len(_AGAIN_S)) - 1]
        self._not_before[job.id] = self._now() + again_s
        to: State | None = "queued" if job.state == "running" else None
        job = await asyncio.to_thread(
            self._store.change, job.id, to, lambda record: setattr(record, "crashes", crashes)
        )
        told = f"The training's process ended by {end.why}; it goes on from the last checkpoint in {again_s:g} s"
        await asyncio.to_thread(self._store.tell, job, told, level="warn")

    async def _left(self, job: Job, session: Session, end: End) -> None:
        why = _LEFT_FOR.get(session.why_leaving or "", "it was told to")
        saved = f"saved at step {end.step}" if isinstance(end, TrainLeft) else "it goes on from its last checkpoint"
        job = await asyncio.to_thread(self._store.change, job.id, "queued")
        await asyncio.to_thread(self._store.tell, job, f"The job has left: {why} ({saved})")
        self._counts.count_training_end(session.why_leaving or "left")

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


_LEFT_FOR: Final = {
    "room": "a model or a lease needs its memory",
    "pressure": "other programs have taken memory",
    "shutdown": "the server is shutting down",
    "pause": "it was paused",
}


def _amount(job: Job) -> Amount:
    return Amount(job.record.device_bytes, job.record.host_bytes)


@contextlib.contextmanager
def _already_ended() -> Iterator[None]:
    """A job that was cancelled or paused meanwhile is left as it is. Raises ApiError for anything else."""
    try:
        yield
    except ApiError as problem:
        if problem.status != 409:
            raise
