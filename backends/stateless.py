"""What engines share whose jobs leave nothing behind: no cached prefix, nothing to resume, and no half answers.

Owns the running jobs and how one ends without its answer. What a step computes is each engine's own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from backends.messages import Facts, Failed, Started

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import ErrorCode, Event, Ready


class RunningJob(Protocol):
    """A job between its `Started` and its end."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...


R = TypeVar("R", bound=RunningJob)
F = TypeVar("F", bound=Facts)


class StatelessEngine(Generic[R, F]):
    """See `backends.engine.Engine`."""

    def __init__(self, ready: Ready[F]) -> None:
        self._ready = ready
        self._running: deque[R] = deque()

    def ready(self) -> Ready[F]:
        """The effective run-time figures."""
        return self._ready

    @property
    def idle(self) -> bool:
        """True when no job runs."""
        return not self._running

    def close(self) -> None:
        """Let go of everything."""
        for one in self._running:
            self._let_go(one)
        self._running.clear()

    def keep(self, max_bytes: int) -> None:
        """No prefix is cached."""

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job; nothing of it is computed between steps."""
        found = next((one for one in self._running if one.id == job_id), None)
        return [] if found is None else self._failed(found, "cancelled", "the request was cancelled")

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        """Half of an image, a sound or some vectors is no answer."""
        del reason
        return self.cancel(job_id)

    def interrupt(self, job_id: str) -> None:
        """Its step goes on to its end."""

    def attend(self, waits: Callable[[], bool]) -> None:
        """The same."""

    def make_way(self) -> None:
        """The same."""

    def preempt(self, job_id: str) -> list[Event]:
        """No such model grows, and its answers come soon."""
        del job_id
        return []

    def _admitted(self, job: R, *, prompt_tokens: int) -> list[Event]:
        """The events of a job that is taken in."""
        if len(self._running) >= self._ready.parallel:
            self._let_go(job)
            return [Failed(id=job.id, code="internal_error", message="the job was dispatched to a full engine")]
        self._running.append(job)
        return [Started(id=job.id, prompt_tokens=prompt_tokens)]

    def _failed(self, job: R, code: ErrorCode, message: str, *, param: str | None = None) -> list[Event]:
        """The events of a job that ends without its answer."""
        self._let_go(job)
        self._running.remove(job)
        return [Failed(id=job.id, code=code, message=message, param=param)]

    def _let_go(self, job: R) -> None:
        """Of files and buffers that a job holds; by itself it holds none."""
