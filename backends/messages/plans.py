"""How a model is loaded, as the server plans it and a worker is told: each sort of model what it has.

Here are those of text. A backend with another sort of model has its own beside its kind of job (`Kind.plan`).
"""

from __future__ import annotations

import math
from typing import Final, Literal

from backends.messages.plain import Plain

Device = Literal["cuda", "cpu"]
KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
KvTypes = str
"""A `KvType` for keys and values, or one for each: `q8_0/q4_0`. `backends.kv_types` reads it."""
KvOffload = Literal["card", "host"]
"""Where the KV cache lies beside a card: with its layers, or in host memory, where the CPU attends over it."""
KvLayout = Literal["split", "unified"]
"""`split`: each sequence has a stream of `context` cells; `unified`: all sequences share the cells of one pool."""
SpeculationMode = Literal["auto", "off", "ngram"]
"""`auto` drafts tokens where that has been faster, `ngram` from earlier text wherever they are likely to come true."""
DRAFTERS: Final = ("ngram", "cache", "prediction", "grammar", "model", "mtp")
"""Where drafted tokens come from: the request's own text, texts of the prefix cache, its prediction, a grammar that
leaves no choice, a draft model, the model's own layer that predicts further tokens.
"""

ALL_LAYERS: Final = -1
CELL_BLOCK: Final = 256
"""llama.cpp rounds each sequence's cells up to this."""


def whole_blocks(n_cells: float) -> int:
    """Cells, rounded up as llama.cpp does."""
    return math.ceil(n_cells / CELL_BLOCK) * CELL_BLOCK


def pool_cells(*, context: int, parallel: int, kv_tokens: int) -> int:
    """Cells of all sequences together: for a whole context each, or a pool of `kv_tokens` that holds one at least."""
    each = whole_blocks(context)
    return min(each * parallel, max(each, whole_blocks(kv_tokens))) if kv_tokens else each * parallel


class LoadPlan(Plain, frozen=True, kw_only=True):
    """How a model is loaded; each sort of model is a subclass with a tag of its own."""

    device: Device = "cpu"

    @property
    def words(self) -> str:
        """What was chosen, for people; empty where there is nothing to choose."""
        return ""


class GeneratorPlan(LoadPlan, tag="generator", frozen=True):
    """Of a model that generates text."""

    context: int
    """Tokens one request may use."""
    parallel: int
    """Sequences decoded at once."""
    kv_type: KvTypes = "f16"
    gpu_layers: int = ALL_LAYERS
    """Layers on the GPU, the output layer counted; -1 means all. Of no meaning on a machine without one."""
    kv_tokens: int = 0
    """Of a pool that all sequences share; 0: every sequence has cells for a whole context."""
    expert_layers: int = 0
    """The first so many layers keep their experts in host memory; of no meaning on a machine without a card."""
    ffn_layers: int = 0
    """The same of the feed-forward weights that every token uses."""
    kv_offload: KvOffload = "card"
    """Of no meaning on a machine without a card."""

    def of_draft(self, n_ctx_train: int) -> GeneratorPlan:
        """How a model of such a trained context (0: not known) is loaded that drafts for this one: beside it, whole,
        for as many sequences.
        """
        return GeneratorPlan(
            min(self.context, n_ctx_train or self.context),
            self.parallel,
            gpu_layers=ALL_LAYERS if self.gpu_layers else 0,
            kv_tokens=self.kv_tokens,
            device=self.device,
        )

    @property
    def words(self) -> str:
        """Shape and cache."""
        pool = f", kv_tokens {self.kv_tokens}" if self.kv_tokens else ""
        shape = f"context {self.context}, parallel {self.parallel}, kv_type {self.kv_type}"
        return f"{shape}{pool}{_layers(self)}{_on_host(self)}"

    @property
    def host_tensors(self) -> tuple[str, ...]:
        """Regular expressions over the names of weights that stay in host memory although their layers do not."""
        if self.device == "cpu":
            return ()
        kinds = ((self.expert_layers, _EXPERTS), (self.ffn_layers, _FEED_FORWARD))
        return tuple(rf"^blk\.({'|'.join(map(str, range(n)))})\.{names}" for n, names in kinds if n > 0)

    @property
    def kv_on_host(self) -> bool:
        """Whether the cache lies in another memory than its layers."""
        return self.kv_offload == "host" and self.device != "cpu"

    @property
    def kv_layout(self) -> KvLayout:
        """Who has its cells for itself is faster; a pool holds more sequences than it has contexts."""
        return "unified" if self.kv_tokens else "split"

    @property
    def cells_each(self) -> int:
        """KV cells that one sequence may use."""
        return whole_blocks(self.context)

    @property
    def cells(self) -> int:
        """KV cells in all."""
        return pool_cells(context=self.context, parallel=self.parallel, kv_tokens=self.kv_tokens)

    @property
    def cells_seen(self) -> int:
        """KV cells that one forward pass looks at: in a pool those of all sequences, else those of one."""
        return self.cells if self.kv_tokens else self.cells_each


class EncoderPlan(LoadPlan, tag="encoder", frozen=True):
    """Of an embedding model or a reranker: its inputs go through whole and leave no cache."""

    context: int
    """Tokens of one input."""
    gpu_layers: int = ALL_LAYERS

    @property
    def words(self) -> str:
        """The longest input."""
        return f"context {self.context}{_layers(self)}"


_EXPERTS: Final = r"ffn_(up|down|gate|gate_up)_(ch|)exps"
_FEED_FORWARD: Final = r"ffn_(up|down|gate)\."
TextPlan = GeneratorPlan | EncoderPlan
"""Of any model that reads text."""


def _layers(plan: TextPlan) -> str:
    on_card = plan.device == "cuda" and plan.gpu_layers >= 0
    return f", {plan.gpu_layers} layers on the card" if on_card else ""


def _on_host(plan: GeneratorPlan) -> str:
    if plan.device == "cpu":
        return ""
    experts = f", experts of {plan.expert_layers} layers in host memory" if plan.expert_layers else ""
    feed_forward = f", feed-forward of {plan.ffn_layers} layers in host memory" if plan.ffn_layers else ""
    return experts + feed_forward + (", KV cache in host memory" if plan.kv_on_host else "")
