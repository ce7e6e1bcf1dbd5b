"""Takes a worker's commands in and makes its jobs ready, so that the engine's thread only ever computes."""

from __future__ import annotations

import functools
import itertools
import queue
import threading
import time
from typing import TYPE_CHECKING, Final, TypeAlias, assert_never

from backends.border.link import Link, note, or_leave
from backends.border.wire import WireError
from backends.engine import AnyEngine, JobError
from backends.kinds import refusal
from backends.messages import (
    BACKGROUND_PRIORITY,
    Cancel,
    Command,
    CutShort,
    Event,
    Failed,
    Generate,
    Job,
    Keep,
    LoadModel,
    Ping,
    Pong,
    Preempt,
    Shutdown,
    Step,
    Submit,
)
from backends.registry import KINDS, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.engine import Prepared


SHORT_BYTES: Final = 32 * 1024
"""Of text: prepared in some ten milliseconds."""
Item: TypeAlias = "Prepared | Cancel | CutShort | Preempt | Keep | Shutdown"
"""What the engine's thread takes in between two steps."""
_AGING_BYTES_PER_S: Final = 1_000_000
"""A long job lets shorter ones pass for a second per megabyte that it is longer."""


def _resume(job: Job) -> bytes:
    """Where a job that was not prepared goes on: where it came from."""
    return job.resume if isinstance(job, Generate) else b""


def prepared(engine: AnyEngine, job: Job) -> Prepared | list[Event]:
    """What the engine makes of a job of a kind that it takes. Raises JobError."""
    if type(job) not in engine.takes:
        why = refusal(KINDS[engine.takes[0]], kind_of(job))
        raise JobError("invalid_value", f"this model {why}", param="model")
    ready: Prepared | list[Event] = engine.prepare(job)
    return ready


class Clerk:
    """Three threads, and what passes between them and the engine's.

    Short jobs have a preparer of their own: a library tokenizes megabytes in one call without an end. Of the
    long ones the shorter go first, as long as none waits for ever.

    A job is known in `_unprepared` until it is prepared; the side that removes it answers for it, so a `Cancel`
    and a finished preparation never both do. One that was preempted may come again while its first preparation runs.
    """

    def __init__(self, link: Link) -> None:
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.step_started: float | None = None
        self._link = link
        self._engine: AnyEngine | None = None
        self._short: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._long: queue.PriorityQueue[tuple[float, int, Job]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._unprepared: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._prepare_started: dict[str, float] = {}

    def start(self, already_read: Sequence[Command] = ()) -> None:
        """Read from now on, also while the model loads."""
        for command in already_read:
            self._take(command)
        threading.Thread(target=or_leave, args=(self._read,), name="reader", daemon=True).start()

    def serve(self, engine: AnyEngine) -> None:
        """Accept jobs from now on."""
        engine.attend(lambda: not self.inbox.empty())
        self._engine = engine
        for name, take in (("preparer", self._short.get), ("long-preparer", lambda: self._long.get()[2])):
            work = functools.partial(self._prepare_all, take)
            threading.Thread(target=or_leave, args=(work,), name=name, daemon=True).start()

    def _read(self) -> None:
        while True:
            for command in self._link.receive():
                self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case Ping():
                self._link.send(Pong(step_age_s=self._age_s()))
            case Submit(job=job):
                with self._lock:
                    self._unprepared[job.id] = job
                self._put(job)
            case Cancel(id=job_id) | CutShort(id=job_id) | Preempt(id=job_id):
                with self._lock:
                    waiting = self._unprepared.pop(job_id, None)
                    if waiting is None:
                        self.inbox.put(command)
                        if isinstance(command, Preempt):
                            self._make_way()
                        elif self._engine is not None:
                            self._engine.interrupt(job_id)
                if waiting is not None:
                    resume = _resume(waiting) if isinstance(command, Preempt) else None
                    told = "the request was cancelled"
                    self._answer([Failed(id=job_id, code="cancelled", message=told, resume=resume)])
            case Shutdown() | Keep():
                self.inbox.put(command)
                self._make_way()
            case LoadModel():
                pass
            case _:
                assert_never(command)

    def _put(self, job: Job) -> None:
        n_bytes = kind_of(job).weight(job)
        if n_bytes <= SHORT_BYTES:
            self._short.put(job)
        else:
            rank = time.monotonic() + n_bytes / _AGING_BYTES_PER_S
            self._long.put((rank, next(self._numbers), job))

    def _prepare_all(self, take: Callable[[], Job]) -> None:
        while True:
            job = take()
            if self._unprepared.get(job.id) is job:
                self._prepare_started[job.id] = time.monotonic()
                result = self._prepare(job)
                del self._prepare_started[job.id]
                self._deliver(job, result)

    def _prepare(self, job: Job) -> Prepared | list[Event]:
        assert self._engine is not None
        try:
            return prepared(self._engine, job)
        except JobError as error:
            return [error.failed(job.id)]
        except Exception as error:  # a fault of ours must not take the other jobs along
            note(error)
            return [Failed(id=job.id, code="internal_error", message="the request could not be prepared for the model")]

    def _deliver(self, job: Job, result: Prepared | list[Event]) -> None:
        with self._lock:
            wanted = self._unprepared.get(job.id) is job
            if wanted:
                del self._unprepared[job.id]
            if wanted and not isinstance(result, list):
                self.inbox.put(result)  # under the lock, so that a later Cancel stands behind it
                if not isinstance(job, Generate) or job.priority > BACKGROUND_PRIORITY:
                    self._make_way()
        if wanted and isinstance(result, list):
            self._answer(result)

    def _make_way(self) -> None:
        if self._engine is not None:
            self._engine.make_way()

    def _answer(self, events: list[Event]) -> None:
        try:
            self._link.send(Step(events=events))
        except WireError as error:  # one client's enormous answer must not take the other jobs along
            note(error)
            message = "the answer is too large to be sent; ask for less at once"
            self._link.send(Step(events=[Failed(id=events[-1].id, code="invalid_value", message=message)]))

    def _age_s(self) -> float:
        started = [t for t in (self.step_started, *list(self._prepare_started.values())) if t is not None]
        return time.monotonic() - min(started) if started else 0.0
