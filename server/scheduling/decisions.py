"""What the scheduler decides: the states of a model and the actions it asks the pool to perform. Plain data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from backends.messages import ErrorCode


class ModelState(Enum):
    """Where a model is.

    unloaded -> loading -> ready -> draining -> unloading -> unloaded. A failed load and a dead worker lead from
    wherever it was to unloaded; a ready model without running jobs passes through draining at once. A model that
    drains for another goes back to ready when that one is not wanted any more; a load without a waiting request is
    cancelled and leads from loading to unloading.
    """

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"


UnloadReason = Literal[
    "room",
    "ttl",
    "pressure",
    "manual",
    "crash",
    "shutdown",
    "changed",
    "removed",
    "growth",
    "shrink",
    "lease",
    "training",
]


@dataclass(frozen=True)
class Dispatch:
    """Give a queued job to the model's ready worker, which has room for it."""

    job_id: str
    model: str


@dataclass(frozen=True)
class Load:
    """Start the model's worker; answer with `on_ready` or `on_gone`."""

    model: str
    smaller_by: int = 0
    """Loads of it that ran out of memory since the last that did not: so many plans down the list."""
    context: int = 0
    """Tokens of context that a waiting job needs; 0: as many as it begins with."""


@dataclass(frozen=True)
class Unload:
    """Stop the model's worker, which runs no job; answer with `on_gone`."""

    model: str
    reason: UnloadReason
    beneficiary: str | None = None
    """The model that needs the room."""


@dataclass(frozen=True)
class CancelLoad:
    """Give up the load under way, because no request waits for it; answer with `on_gone`."""

    model: str


@dataclass(frozen=True)
class Drain:
    """No new jobs go to the model's worker; nothing is to be done but to tell those who listen."""

    model: str
    reason: UnloadReason
    beneficiary: str | None = None


@dataclass(frozen=True)
class Reject:
    """End a job that no worker holds: this is its terminal event."""

    job_id: str
    code: ErrorCode
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Abort:
    """Ask the worker to drop a running job and report its end as `code`; the terminal event frees the room."""

    job_id: str
    code: ErrorCode
    message: str


@dataclass(frozen=True)
class Preempt:
    """Ask the model's worker to stop a running job, so that it goes on after the next load: answer with `on_preempted`.

    One that cannot be resumed goes on, and its terminal event comes as always.
    """

    job_id: str
    model: str


@dataclass(frozen=True)
class Forget:
    """The model is no more: it was retired, runs nothing and holds nothing. The scheduler knows it no longer."""

    model: str


@dataclass(frozen=True)
class Grow:
    """A job waits for a longer context of its model, which is loaded anew once none runs there.

    Nothing is to be done but to tell.
    """

    job_id: str
    model: str
    context: int
    running: int
    """Jobs that end before, or are preempted."""
    patience_s: float = 0.0
    """Until they are."""


@dataclass(frozen=True)
class Stay:
    """The model does not grow for a running job, whose worker has ended it: run it again with the context there is."""

    job_id: str
    model: str
    context: int
    """What it asked for."""
    reason: str


Action = Dispatch | Load | CancelLoad | Drain | Unload | Reject | Abort | Preempt | Forget | Grow | Stay
