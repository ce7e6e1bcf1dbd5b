"""The seam between a worker and an inference library: one small Protocol, and the error a bad job raises.

An engine lives on the worker's main thread; only `prepare` is called from another thread,
always the same one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from backends.messages import Embed

if TYPE_CHECKING:
    from backends.messages import ErrorCode, Event, Job, Ready, Rerank, Step


class JobError(Exception):
    """A job that this model cannot run, with the code and the sentence its `Failed` event carries."""

    def __init__(self, code: ErrorCode, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.param = param


class LoadError(Exception):
    """A model that cannot be loaded. `out_of_memory` tells the scheduler that less might fit."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.out_of_memory = out_of_memory


def no_vectors(job: Embed | Rerank) -> JobError:
    """What a model that generates text says to a job that wants vectors or scores of it."""
    wanted, kind = ("embeddings", "an embedding model") if isinstance(job, Embed) else ("scores", "a reranker")
    message = f"this model generates text and gives no {wanted}. hint: configure {kind} and name it in 'model'"
    return JobError("invalid_value", message, param="model")


class Prepared(Protocol):
    """A job made ready beside the engine's thread: rendered, tokenized, checked. Engines define what else it holds."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...


class Engine(Protocol):
    """One loaded model that runs many jobs at once."""

    def ready(self) -> Ready:
        """The effective run-time figures of the loaded model."""
        ...

    def prepare(self, job: Job) -> Prepared | list[Event]:
        """Render, tokenize and check a job; the events themselves where it needs no step (`Tokenize`, `Detokenize`).

        Thread-safe against `step`. Raises JobError.
        """
        ...

    def add(self, prepared: Any) -> list[Event]:
        """Take in what this engine's `prepare` returned. The server dispatches only what has room, it never queues."""
        ...

    def cancel(self, job_id: str) -> list[Event]:
        """Drop a job at once and free its sequences; nothing for an unknown id."""
        ...

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        """End a job as at `max_tokens` where it has generated something, else `cancel` it."""
        ...

    def step(self) -> Step:
        """Advance every sequence once: one forward pass, one message."""
        ...

    def keep(self, max_bytes: int) -> None:
        """Hold at most so many bytes of cached prefixes in the store's folder from now on."""
        ...

    @property
    def idle(self) -> bool:
        """True when `step` would have nothing to do."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...
