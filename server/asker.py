"""Who asks: the id of the request that a task serves, and the trace that its client has begun. Set by the door."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Asker:
    """One request."""

    request_id: str = ""
    """Empty for what the server does by itself."""
    traceparent: str = ""
    """As W3C's trace context has it; empty where the client has begun none."""


_ALONE: Final = Asker()
ASKER: Final[ContextVar[Asker]] = ContextVar("asker", default=_ALONE)
