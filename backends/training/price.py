"""What a training job takes of memory, computed from its base's header before anything is loaded. Pure and light.

The peak of a step is when its backward pass begins: weights, the optimiser's moments, gradients of earlier passes, all
activations that the pass keeps, and the logits. Activations are counted as transformers' layers keep them for autograd,
in values per token and layer (Korthikanti et al., https://arxiv.org/abs/2205.05198, section 4, does it for GPT in 16
bits): of a gated layer 8 of the hidden width (both norms' inputs and results, queries, keys, values, what attention
gives), 4 of the feed-forward width (gate, its activation, up, their product), and an adapter's narrow results. Where
the norms' weights learn, 2 more of the hidden width. GPT-2's activation function is written out in PyTorch and keeps 5
of the feed-forward width. With gradient checkpointing a layer keeps its input, and one at a time all of the above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from backends.bnb import arithmetic
from backends.messages.training import ALL_LINEAR

if TYPE_CHECKING:
    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor
    from backends.messages.training import Recipe

_FLOAT_BYTES: Final = 4
_MOMENTS: Final = 2
_RUNTIME_BYTES: Final = 300 * 2**20
"""Python with PyTorch, transformers and peft on a CPU, measured."""
_SLICE_BYTES: Final = 16 * 2**20
"""Of logits in float32 at a time (`backends.training.loss`)."""
_ROW_BYTES: Final = 5
"""A token of the data, and whether it is learnt."""
_TOKEN_CHARS: Final = 3
_GIB: Final = 2**30


@dataclass(frozen=True)
class Price:
    """Bytes by component."""

    weights: int
    adapters: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    runtime: int
    data: int
    """Of host memory: the rows of the training file."""
    on_card: bool
    host_runtime: int
    """Beside a card."""
    disk_bytes: int
    """The checkpoints that stay, and the result."""
    trainable: int
    """Numbers that learn."""

    @property
    def device_bytes(self) -> int:
        """Where the model computes; without a card that is host memory, the data included."""
        parts = (self.weights, self.adapters, self.gradients, self.optimiser, self.activations, self.logits)
        return sum(parts) + self.runtime + (0 if self.on_card else self.data)

    @property
    def host_bytes(self) -> int:
        """Of host memory beside a card; 0 without one."""
        return self.data + self.host_runtime if self.on_card else 0

    def lines(self) -> list[str]:
        """The sum as a person reads it."""
        parts = {
            "weights": self.weights,
            "adapters": self.adapters,
            "gradients": self.gradients,
            "optimiser": self.optimiser,
            "activations": self.activations,
            "logits": self.logits,
            "runtime": self.runtime,
            **({} if self.on_card else {"data": self.data}),
        }
        told = [f"{name:<12} {n_bytes / _GIB:8.3f} GiB" for name, n_bytes in parts.items() if n_bytes]
        told.append(f"{'together':<12} {self.device_bytes / _GIB:8.3f} GiB")
        if self.host_bytes:
            told.append(f"{'host memory':<12} {self.host_bytes / _GIB:8.3f} GiB")
        return [*told, f"{'on disk':<12} {self.disk_bytes / _GIB:8.3f} GiB"]


def price(header: FolderInfo, recipe: Recipe, *, text_bytes: int = 0) -> Price:
    """Of one recipe; `text_bytes` is what `examples.check` has counted. Measured peaks: docs/benchmarks.md."""
    on_card = recipe.device == "cuda"
    layers = [tensor for tensor in header.tensors if arithmetic.is_linear(tensor, {})]
    n_adapters = _adapter_values(header, layers, recipe)
    n_all = sum(tensor.n_elements for tensor in header.tensors)
    trainable = n_all if recipe.method == "full" else n_adapters
    tokens = recipe.micro_batch * recipe.max_length
    activations = _Activations(header, recipe, tokens)
    gradients = trainable * _FLOAT_BYTES
    kept = activations.kept_bytes
    if recipe.accumulation == 1:  # they come as the activations go
        gradients, kept = _together(gradients, kept, header, recipe)
    learnt = trainable * _FLOAT_BYTES
    runtime = arithmetic.RUNTIME_BYTES["cuda"]
    return Price(
        weights=sum(_weight_bytes(tensor, header, recipe) for tensor in header.tensors),
        adapters=n_adapters * _FLOAT_BYTES,
        gradients=gradients,
        optimiser=learnt * _MOMENTS,
        activations=kept,
        logits=activations.logits_bytes,
        runtime=runtime.device if on_card else _RUNTIME_BYTES,
        data=text_bytes // _TOKEN_CHARS * _ROW_BYTES,
        on_card=on_card,
        host_runtime=runtime.host if on_card else 0,
        disk_bytes=3 * (1 + _MOMENTS) * learnt + learnt,
        trainable=trainable,
    )


def fitting(header: FolderInfo, recipe: Recipe, budget_bytes: int, *, text_bytes: int = 0) -> Recipe | None:
    """The recipe with the largest micro-batch that fits, of the same effective batch; None where not one line does."""
    for lines in range(recipe.micro_batch, 0, -1):
        if recipe.effective_batch % lines == 0:
            smaller = msgspec.structs.replace(recipe, micro_batch=lines, accumulation=recipe.effective_batch // lines)
            if price(header, smaller, text_bytes=text_bytes).device_bytes <= budget_bytes:
                return smaller
    return None


def _together(gradients: int, kept: int, header: FolderInfo, recipe: Recipe) -> tuple[int, int]:
    """Of gradients that grow while activations shrink: what there is of both at the worse end, and the head's."""
    head = header.n_vocab * header.number("hidden_size") * _FLOAT_BYTES if recipe.method == "full" else 0
    return (head, kept) if kept + head >= gradients else (gradients, 0)


def _adapter_values(header: FolderInfo, layers: list[StoredTensor], recipe: Recipe) -> int:
    if recipe.method == "full":
        return 0
    return sum(recipe.rank * sum(_shape(tensor, header)) for tensor in layers if _is_target(tensor, recipe))


def _is_target(tensor: StoredTensor, recipe: Recipe) -> bool:
    if ".experts." in tensor.name:
        return False
    end = tensor.name.removesuffix(".weight").rpartition(".")[2]
    return recipe.targets == ALL_LINEAR or end in recipe.targets


def _shape(tensor: StoredTensor, header: FolderInfo) -> tuple[int, ...]:
    """`(out, in)`; of weights that are stored packed what their widths say is not known, and the layer is square."""
    if not header.stored_quantised:
        return tensor.shape
    return (header.number("hidden_size"), header.number("hidden_size"))


def _weight_bytes(tensor: StoredTensor, header: FolderInfo, recipe: Recipe) -> int:
    """As the training process holds it: what learns in float32, a frozen base as it is computed with."""
    if header.stored_quantised:
        return tensor.n_bytes
    if recipe.quantization == "nf4" and arithmetic.is_linear(tensor, {}):
        return arithmetic.packed_bytes(tensor.n_elements, double=True)
    if recipe.quantization == "8bit" and arithmetic.is_linear(tensor, {}):
        return tensor.n_elements + tensor.shape[0] * _FLOAT_BYTES
    return tensor.n_elements * (2 if recipe.device == "cuda" and recipe.method != "full" else _FLOAT_BYTES)


class _Activations:
    """What a forward pass of so many tokens keeps for its backward pass."""

    def __init__(self, header: FolderInfo, recipe: Recipe, tokens: int) -> None:
        self._header, self._recipe, self._tokens = header, recipe, tokens
        self._size = 2 if recipe.device == "cuda" else _FLOAT_BYTES
        self._hidden = header.number("hidden_size") or header.number("n_embd")
        heads = max(header.number("num_attention_heads") or header.number("n_head"), 1)
        head_size = header.number("head_dim") or self._hidden // heads
        self._queries = heads * head_size
        self._keys = (header.number("num_key_value_heads") or heads) * head_size
        self._wide = header.number("intermediate_size") or header.number("n_inner") or 4 * self._hidden
        self._heads = heads
        self._n_layers = header.n_layers or header.number("n_layer")

    @property
    def logits_bytes(self) -> int:
        """With a slice of them in float32; their gradient takes their own place."""
        n_bytes = self._tokens * self._header.n_vocab * self._size
        return n_bytes + min(n_bytes * _FLOAT_BYTES // self._size, _SLICE_BYTES)

    @property
    def kept_bytes(self) -> int:
        """All of them, at the end of the forward pass, or with checkpointing while the first layer is computed anew."""
        ends = self._tokens * self._hidden * (self._size + _FLOAT_BYTES)
        if not self._recipe.gradient_checkpointing:
            return self._n_layers * self._layer_bytes + ends
        of_layer = max(0, self._layer_bytes + 3 * self._tokens * self._wide * self._size - self.logits_bytes)
        return self._n_layers * self._tokens * self._hidden * self._size + of_layer + ends

    @property
    def _layer_bytes(self) -> int:
        learns_all = self._recipe.method == "full"
        narrow = 0 if learns_all else self._recipe.rank * self._n_targets
        of_norms = (2 if learns_all else 0) * self._hidden
        values = (
            4 * self._hidden + 2 * self._queries + 2 * self._keys + of_norms + self._functions * self._wide + narrow
        )
        in_32_bits = 2 * self._hidden * _FLOAT_BYTES if self._recipe.device == "cuda" else 0
        return self._tokens * (values * self._size + in_32_bits + self._scores_bytes)

    @property
    def _functions(self) -> int:
        return 4 if self._is_gated else 5

    @property
    def _is_gated(self) -> bool:
        return any("gate" in tensor.name for tensor in self._header.tensors)

    @property
    def _n_targets(self) -> int:
        found = {t.name for t in self._header.tensors if arithmetic.is_linear(t, {}) and _is_target(t, self._recipe)}
        return round(len(found) / max(self._n_layers, 1))

    @property
    def _scores_bytes(self) -> int:
        """Per token: only attention that drops some of its scores keeps them, on a CPU."""
        drops = any(self._header.config.get(key) for key in ("attention_dropout", "attn_pdrop"))
        return self._heads * self._recipe.max_length * 9 if drops and self._recipe.device == "cpu" else 0
