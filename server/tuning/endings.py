"""What follows from the end of a training process: a model, an error, another try, or nothing; kept and told.

What runs next is the runner's business. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from typing import TYPE_CHECKING, Final, Protocol

from backends.messages.training import TrainFailed, TrainFinished, TrainLeft
from server.errors import ApiError
from server.tuning.job import Job, JobError, JobRecord, State
from server.tuning.session import Crashed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.tuning.results import Results
    from server.tuning.session import End
    from server.tuning.store import TuningStore

MOST_CRASHES: Final = 3
"""Without a checkpoint between them; then the job has failed."""
_AGAIN_S: Final = (1.0, 5.0, 20.0)
"""Until a job whose process crashed is begun again, by how often it did."""
_CONFLICT: Final = 409
_LOG: Final = logging.getLogger("onecard.training")
_LEFT_FOR: Final = {
    "room": "a model or a lease needs its memory",
    "pressure": "other programs have taken memory",
    "shutdown": "the server is shutting down",
    "pause": "it was paused",
}


class Counts(Protocol):
    """Who is told of ends."""

    def count_training_end(self, outcome: str) -> None:
        """A job or a process of one has ended."""


class Endings:
    """Of one data folder. `clock` gives seconds since 1970."""

    def __init__(self, store: TuningStore, results: Results, counts: Counts, clock: Callable[[], float]) -> None:
        self._store, self._results, self._counts, self._clock = store, results, counts, clock

    async def after(self, job_id: str, end: End, why_leaving: str | None) -> float:
        """Keep what the end of a process means. For how long the job is not to be begun again. Raises ApiError."""
        job = await asyncio.to_thread(self._store.get, job_id, None)
        _LOG.info("training_ended id=%s end=%s leaving=%s", job_id, type(end).__name__, why_leaving)
        again_s = 0.0
        if job.state != "cancelled":
            with already_ended():
                again_s = await self._kept(job, end, why_leaving)
        if await self.sweep(job_id):
            self._counts.count_training_end("cancelled")
        return again_s

    async def fail(self, job: Job, error: JobError) -> None:
        """A job has failed before it ran, where it has not ended meanwhile. Raises ApiError."""
        with already_ended():
            await self._fail(job, error)

    async def sweep(self, job_id: str) -> bool:
        """Remove what a job has left that was cancelled meanwhile; whether it was. Raises ApiError."""
        job = await asyncio.to_thread(self._store.get, job_id, None)
        if job.state != "cancelled":
            return False
        await self._forget(job)
        return True

    async def _kept(self, job: Job, end: End, why: str | None) -> float:
        if isinstance(end, TrainFinished) and job.state == "running":
            await self._succeed(job, end)
        elif isinstance(end, TrainFailed) and job.state == "paused":  # what it has saved stays: it may go on
            await asyncio.to_thread(self._store.tell, job, end.message, level="warn")
            await self._left(job, why, end)
        elif isinstance(end, TrainFailed):
            await self._fail(job, JobError(end.code, end.message, "training_file" if end.code == "bad_data" else None))
        elif isinstance(end, Crashed) and why is None:
            return await self._crashed(job, end)
        else:
            await self._left(job, why, end)
        return 0.0

    async def _succeed(self, job: Job, end: TrainFinished) -> None:
        job = await asyncio.to_thread(self._results.keep, job, end, int(self._clock()))
        await self._results.serve(job)
        if end.lost_best_step:
            told = f"The checkpoint of step {end.lost_best_step}, the best, cannot be read: the last step is the result"
            await asyncio.to_thread(self._store.tell, job, told, level="warn")
        for told in (f"New fine-tuned model created: {job.model_name}", "The job has successfully completed"):
            await asyncio.to_thread(self._store.tell, job, told)
        self._counts.count_training_end("succeeded")

    async def _fail(self, job: Job, error: JobError) -> None:
        """The word of it comes first: a server that is killed behind it sweeps the folder at its next start."""
        try:
            job = await self._failed(job, error)
        except ApiError as problem:
            if error.code != "disk" or problem.status == _CONFLICT:
                raise
            await self._forget(job)  # there is no room for the word before
            job = await self._failed(job, error)
        self._counts.count_training_end("failed")
        await self._forget(job)  # before the event, for which there may be no room yet
        await asyncio.to_thread(self._store.tell, job, error.message, level="error")

    async def _failed(self, job: Job, error: JobError) -> Job:
        def edit(record: JobRecord) -> None:
            record.error, record.finished_at = error, int(self._clock())

        return await asyncio.to_thread(self._store.change, job.id, "failed", edit)

    async def _crashed(self, job: Job, end: Crashed) -> float:
        crashes = job.record.crashes + 1
        self._counts.count_training_end("crashed")
        if crashes >= MOST_CRASHES:
            told = f"The training's process ended {crashes} times without a checkpoint between, at last by {end.why}."
            await self._fail(job, JobError("training_crashed", told))
            return 0.0
        again_s = _AGAIN_S[min(crashes, len(_AGAIN_S)) - 1]
        to: State | None = "queued" if job.state == "running" else None
        job = await asyncio.to_thread(
            self._store.change, job.id, to, lambda record: setattr(record, "crashes", crashes)
        )
        told = f"The training's process ended by {end.why}; it goes on from the last checkpoint in {again_s:g} s"
        await asyncio.to_thread(self._store.tell, job, told, level="warn")
        return again_s

    async def _left(self, job: Job, why: str | None, end: End) -> None:
        """Of a job that was paused, and maybe resumed since, the state says already what becomes of it."""
        if job.state == "running":
            job = await asyncio.to_thread(self._store.change, job.id, "queued")
        saved = f"saved at step {end.step}" if isinstance(end, TrainLeft) else "it goes on from its last checkpoint"
        told = f"The job has left: {_LEFT_FOR.get(why or '', 'it was told to')} ({saved})"
        await asyncio.to_thread(self._store.tell, job, told)
        self._counts.count_training_end(why or "left")

    async def _forget(self, job: Job) -> None:
        await asyncio.to_thread(shutil.rmtree, self._store.folder(job.id), ignore_errors=True)


@contextlib.contextmanager
def already_ended() -> Iterator[None]:
    """A job that was cancelled or paused meanwhile is left as it is. Raises ApiError for anything else."""
    try:
        yield
    except ApiError as problem:
        if problem.status != _CONFLICT:
            raise
