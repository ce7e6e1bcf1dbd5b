"""What a worker tells of itself: how its load goes, what it is, and what each step has done."""

from __future__ import annotations

from typing import Generic, Literal

from typing_extensions import TypeVar

from backends.messages.events import Event
from backends.messages.plain import Plain

E = TypeVar("E", default=Event)


class Progress(Plain, tag="progress", frozen=True):
    """A share of the load that is done, 0..1."""

    fraction: float


class Ready(Plain, tag="ready", frozen=True):
    """The model is loaded: its effective run-time figures."""

    context: int
    parallel: int
    n_ctx_train: int
    n_vocab: int
    gpu_layers: int
    n_layers: int
    measured_bytes: int
    """Bytes this process takes once all its buffers are in use, by the best instrument there is; 0: not known."""
    parts: dict[str, int] = {}
    """Measured or reported bytes by component: weights, kv, compute, projector, runtime (those the engine knows)."""
    host_parts: dict[str, int] = {}
    """On a card the same of host memory; without one all is host memory, and in `parts`."""
    capabilities: list[str] = []
    """Among: chat, completion, infill, tools, thinking, embedding, rerank."""
    tool_format: str | None = None
    """How the model writes tool calls, by its name in `backends.formats`; None when it takes no chat."""
    reasoning_marks: tuple[str, str] | None = None
    """What opens and closes a reasoning block in the model's text; None when it writes none."""
    template_options: list[str] = []
    """Switches for reasoning that the chat template reads, among: enable_thinking, thinking, reasoning_effort,
    thinking_budget."""
    engine: str = ""
    """Name and version of the inference library."""
    load_s: float = 0.0
    """Seconds the engine took for the load itself, without the start of the process and its imports."""
    store_error: str = ""
    """Why nothing is kept of cached prefixes though it was asked for; empty where it is."""


class LoadFailed(Plain, tag="load_failed", frozen=True):
    """The model could not be loaded; the worker exits after this."""

    code: Literal["load_failed", "out_of_memory"]
    message: str


class Step(Plain, Generic[E], tag="step", frozen=True):
    """Everything one engine step (or one prepared job) produced, for all its jobs, with the figures of the step.

    Several quick steps may come as one; the figures are sums then.
    """

    events: list[E] = []
    n_decode: int = 0
    """Sequences that got a decoded token in this step."""
    n_prefill: int = 0
    """Prompt tokens computed in this step."""
    n_embedded: int = 0
    """Inputs of `Embed` and `Rerank` jobs whose vectors this step computed."""
    duration_us: int = 0
    batches: list[int] = []
    """Where several steps come as one: `n_decode` of each, in order."""
    kv_used: int = 0
    """Used cells of the KV pool after the step."""
    kv_total: int = 0
    store_bytes: int = 0
    """What cached prefixes take in the store's folder after the step."""


class Pong(Plain, tag="pong", frozen=True):
    """Alive. `step_age_s` is how long the current engine step has been running (0 when between steps)."""

    step_age_s: float = 0.0


class Keeps(Plain, tag="keeps", frozen=True):
    """No more than that lies in the store's folder."""

    max_bytes: int


Report = Progress | Ready | LoadFailed | Step | Keeps | Pong
