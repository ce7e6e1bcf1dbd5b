"""What the server tells a worker: which model to load and how, then jobs, until it is to end."""

from __future__ import annotations

from typing import Any, Generic

from typing_extensions import TypeVar

from backends.messages.events import ErrorCode
from backends.messages.jobs import Job
from backends.messages.plain import Plain
from backends.messages.plans import LoadPlan, SpeculationMode

J = TypeVar("J", bound=Job, default=Job)
P = TypeVar("P", bound=LoadPlan, default=Any)


class Store(Plain, frozen=True):
    """Where a worker may keep cached prefixes, so that the next request, or the next worker, finds them."""

    folder: str
    """In host memory (a file system that has no disk); it is the server's, and the worker writes nothing else there.

    Its files are named by `backends.prefix.eviction_score`: the server reads the names, and may remove any file.
    """
    max_bytes: int
    """To begin with; `Keep` changes it."""
    disk_folder: str = ""
    """On a disk; empty: none."""
    disk_bytes: int = 0


class DraftFiles(Plain, frozen=True):
    """A model that drafts for another one, in the same worker."""

    name: str
    path: str
    options: dict[str, bool | int | float | str] = {}


class LoadModel(Plain, Generic[P], tag="load", frozen=True):
    """The first frame a worker receives: which model, how."""

    name: str
    backend: str
    path: str
    plan: P
    threads: int = 0
    """0 means as many as the machine has physical cores for us."""
    max_itl_ms: float = 0.0
    """The longest a running stream should wait for its next token beside prompts; 0: a small multiple of a step."""
    speculation: SpeculationMode = "off"
    """Whether and how tokens are drafted, of a model that generates text."""
    draft: DraftFiles | None = None
    """Another model of the same backend, which drafts tokens for it; None: none."""
    mtp: bool = False
    """Let its own layer that predicts further tokens draft, where its file has one."""
    store: Store | None = None
    """Where cached prefixes are kept; None: nowhere."""
    options: dict[str, bool | int | float | str] = {}
    """Backend-specific settings that only the engine's folder knows."""
    limit_bytes: int = 0
    """Host memory that the load may take: what it is estimated at, several times over; 0: no limit of its own."""


class Submit(Plain, Generic[J], tag="submit", frozen=True):
    """Run a job."""

    job: J


class Cancel(Plain, tag="cancel", frozen=True):
    """Drop a job; its terminal event is `Failed(code="cancelled")` unless another one was already on its way."""

    id: str


class CutShort(Plain, tag="cut_short", frozen=True):
    """End a job as `max_tokens` would: what it has generated is its answer. One without any ends as by `Cancel`."""

    id: str
    reason: ErrorCode


class Preempt(Plain, tag="preempt", frozen=True):
    """Stop a job that another worker of the model can resume: it ends with a `Failed` that has `resume`.

    One that cannot be resumed goes on to its end.
    """

    id: str


class Ping(Plain, tag="ping", frozen=True):
    """Are you alive? Answered by the reader thread."""


class Keep(Plain, tag="keep", frozen=True):
    """Hold at most so many bytes of cached prefixes in the store's folder from now on. Answered by `Keeps`."""

    max_bytes: int


class Shutdown(Plain, tag="shutdown", frozen=True):
    """Close the engine and exit 0. Jobs still running are failed with `draining`."""


Command = LoadModel | Submit | Cancel | CutShort | Preempt | Keep | Ping | Shutdown
