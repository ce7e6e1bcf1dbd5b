"""A job on its way: what the pool keeps of it until its terminal event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    grows: bool = True
    """Its model may be loaded with a longer context for it."""
    least_context: int = 0
    """Tokens of context that its prompt needs, as its worker has told; 0: it has told none."""
    dispatched_at: float | None = None
    first_at: float | None = None
    """When its first text or other answer came."""
    cached_tokens: int = 0
    reserved_tokens: int = 0
    """Of its key's limit, until it ends."""
