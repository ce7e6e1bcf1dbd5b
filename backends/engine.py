"""The seam between a worker and an inference library: one small Protocol, and the error a bad job raises.

An engine runs the kinds of jobs that it takes, `Engine[Generate | Tokenize | Detokenize]`, and is asked no others.

An engine lives on the worker's main thread; only `prepare`, `interrupt` and `make_way` are called from others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from backends.messages import Failed, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.messages import ErrorCode, Event, Ready, Step

J = TypeVar("J", bound=Job, contravariant=True)


class JobError(Exception):
    """A job that this model cannot run, with the code and the sentence its `Failed` event carries."""

    def __init__(
        self, code: ErrorCode, message: str, *, param: str | None = None, context: tuple[int, int] = (0, 0)
    ) -> None:
        """`context`: the tokens of context that it needs and that it wants, where more could be had."""
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.param = param
        self.context = context

    def failed(self, job_id: str) -> Failed:
        """The job's end."""
        least, wanted = self.context
        return Failed(
            id=job_id,
            code=self.code,
            message=self.message,
            param=self.param,
            least_context=least,
            wanted_context=wanted,
        )


def not_served(adapter: str, why: str | None) -> JobError:
    """Of a job for an adapter that the load has refused (`why`), or that left the configuration meanwhile (None)."""
    if why is None:
        return JobError("model_not_found", f"the adapter '{adapter}' is no longer configured", param="model")
    return JobError("load_failed", f"adapter '{adapter}' is not served: {why}", param="model")


class LoadError(Exception):
    """A model that cannot be loaded. `out_of_memory` tells the scheduler that less might fit."""

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.out_of_memory = out_of_memory


class Prepared(Protocol):
    """A job made ready beside the engine's thread: rendered, tokenized, checked. Engines define what else it holds."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...


class Engine(Protocol[J]):
    """One loaded model that runs many jobs at once."""

    @property
    def takes(self) -> Sequence[type[Job]]:
        """The jobs it runs, what the model is for first; others are refused before they come here."""
        ...

    def ready(self) -> Ready[Any]:
        """The effective run-time figures of the loaded model."""
        ...

    def prepare(self, job: J) -> Prepared | list[Event]:
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

    def preempt(self, job_id: str) -> list[Event]:
        """Stop a job that another engine of the model can resume, and tell with what; nothing for one that goes on."""
        ...

    def interrupt(self, job_id: str) -> None:
        """A job is about to be ended: a step that serves it alone may end early. Thread-safe against all else."""
        ...

    def attend(self, waits: Callable[[], bool]) -> None:
        """Before the first step: `waits` tells whether something waits for a step's end; `make_way` is called then."""
        ...

    def make_way(self) -> None:
        """Something waits for the step's end: one that is long and serves one job may end. Thread-safe as well."""
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


AnyEngine = Engine[Any]
