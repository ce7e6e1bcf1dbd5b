"""What a worker tells of itself: how its load goes, what it is, and what each step has done."""

from __future__ import annotations

from typing import Generic, Literal

from typing_extensions import TypeVar

from backends.messages.events import Event
from backends.messages.facts import Facts, GeneratorFacts, TextFacts
from backends.messages.plain import Figure, Plain

E = TypeVar("E", default=Event)
F = TypeVar("F", bound=Facts, default=Facts)


class Progress(Plain, tag="progress", frozen=True):
    """A share of the load that is done, 0..1."""

    fraction: float


class Layers(Plain, frozen=True):
    """Of a model that is made of layers, the output layer counted."""

    on_card: int
    total: int
    experts_on_host: int = 0
    """Layers on the card whose experts are not."""
    ffn_on_host: int = 0
    """The same of their other feed-forward weights."""
    kv_on_host: bool = False
    """Their KV cache is not."""

    @property
    def told(self) -> dict[str, Figure]:
        """What of layers on the card is computed by the CPU, by the configuration's names."""
        named = {"expert_layers": self.experts_on_host, "ffn_layers": self.ffn_on_host}
        kept: dict[str, Figure] = {name: n for name, n in named.items() if n}
        return {**kept, **({"kv_offload": "host"} if self.kv_on_host else {})}


class FileLoad(Plain, frozen=True):
    """How a model's files got into memory."""

    mode: str
    """`mmap`, `direct` or `lock`."""
    n_bytes: int
    cached: float
    """The share of them that the page cache held before, 0..1."""

    def told(self, load_s: float) -> dict[str, str | float]:
        """For the event of a load: how, and how fast the disk was where it had to be read."""
        read_bytes = self.n_bytes * (1 - self.cached)
        cold = {"load_mib_per_s": round(read_bytes / 2**20 / load_s)} if self.cached < 1 and load_s > 0 else {}
        return {"load_mode": self.mode, "cached": self.cached, **cold}


class Ready(Plain, Generic[F], tag="ready", frozen=True):
    """The model is loaded: its effective run-time figures."""

    facts: F
    """What only this sort of model has."""
    parallel: int
    """Sequences or jobs at once."""
    measured_bytes: int
    """Bytes this process takes once all its buffers are in use, by the best instrument there is; 0: not known."""
    parts: dict[str, int] = {}
    """Measured or reported bytes by component: weights, kv, compute, projector, runtime (those the engine knows)."""
    host_parts: dict[str, int] = {}
    """On a card the same of host memory; without one all is host memory, and in `parts`."""
    capabilities: list[str] = []
    """Of the models of text, among: chat, completion, infill, tools, thinking, embedding, rerank."""
    layers: Layers | None = None
    """None where the model cannot be split over two memories."""
    engine: str = ""
    """Name and version of the inference library."""
    file: FileLoad | None = None
    """None where the engine reads its files in one way only."""
    load_s: float = 0.0
    """Seconds the engine took for the load itself, without the start of the process and its imports."""

    @property
    def generator(self) -> GeneratorFacts | None:
        """Of a model that generates text; None of any other."""
        return self.facts if isinstance(self.facts, GeneratorFacts) else None

    @property
    def text(self) -> TextFacts | None:
        """Of a model that reads text; None of any other."""
        return self.facts if isinstance(self.facts, TextFacts) else None


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
    n_inputs: int = 0
    """Inputs this step computed of jobs that generate no text: texts of `Embed` and `Rerank`, whatever others take."""
    duration_us: int = 0
    batches: list[int] = []
    """Where several steps come as one: `n_decode` and `n_inputs` of each together, in order."""
    kv_used: int = 0
    """Used cells of the KV pool after the step."""
    kv_total: int = 0
    store_bytes: int = 0
    """What cached prefixes take in the store's folder after the step."""
    drafted: dict[str, tuple[int, int]] = {}
    """By drafter: tokens it drafted for this step, and how many of them came true, beside those of `n_decode`."""

    @property
    def n_tokens(self) -> int:
        """Tokens of answers that came out of it."""
        return self.n_decode + sum(n_accepted for _, n_accepted in self.drafted.values())


class Pong(Plain, tag="pong", frozen=True):
    """Alive. `step_age_s` is how long the current engine step has been running (0 when between steps)."""

    step_age_s: float = 0.0


class Keeps(Plain, tag="keeps", frozen=True):
    """No more than that lies in the store's folder."""

    max_bytes: int


Report = Progress | Ready | LoadFailed | Step | Keeps | Pong
