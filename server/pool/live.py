"""A job on its way: what the pool keeps of it until its terminal event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backends.messages import Failed, Finished
from backends.registry import kind_of
from server.traces import JobTrace

if TYPE_CHECKING:
    from backends.messages import Job
    from server.asker import Asker
    from server.metrics import RequestMeter
    from server.pool.stream import Stream
    from server.scheduling.decisions import Abort


@dataclass
class Live:
    """A job that has no terminal event yet."""

    job: Job
    model: str
    stream: Stream
    meter: RequestMeter
    submitted_at: float
    asker: Asker
    answered: bool = False
    """It has got text or another answer: it cannot be run again."""
    abort: Abort | None = None
    counted: bool = False
    """Among those that clients wait for."""
    grows: bool = True
    """Its model may be loaded with a longer context for it."""
    resume: bytes = b""
    """Where its worker has preempted it, for the next one; the server does not read it. Empty: at the start."""
    least_context: int = 0
    """Tokens of context that its prompt needs, as its worker has told; 0: it has told none."""
    dispatched_at: float | None = None
    first_at: float | None = None
    """When its first text or other answer came."""
    cached_tokens: int = 0
    reserved_tokens: int = 0
    """Of its key's limit, until it ends."""


def asked_by(live: Live) -> dict[str, str]:
    """Whose request it is, for the log and the events."""
    return {"request": live.asker.request_id} if live.asker.request_id else {}


def trace_of(live: Live, event: Finished | Failed, now: float) -> JobTrace:
    """A line of the trace; `now` is in seconds on the clock of the others."""
    finished = event if isinstance(event, Finished) else None
    return JobTrace(
        kind=kind_of(live.job).name,
        model=live.model,
        job_id=live.job.id,
        asker=live.asker,
        submitted_at=live.submitted_at,
        dispatched_at=live.dispatched_at,
        load_s=None if live.stream.load_ms is None else live.stream.load_ms / 1000,
        first_at=live.first_at,
        ended_at=now,
        prompt_tokens=finished.prompt_tokens if finished else live.meter.prompt_tokens,
        cached_tokens=live.cached_tokens,
        completion_tokens=finished.completion_tokens if finished else live.meter.generated_tokens,
        outcome=event.code if isinstance(event, Failed) else live.meter.reason,
        failed=isinstance(event, Failed) and event.code != "cancelled",
    )
