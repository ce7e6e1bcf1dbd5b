"""What a training job takes of memory, computed from its base's header before anything is loaded. Pure and light.

A step has two moments at which it may hold most: when the loss is computed, with all activations that its backward pass
needs and the logits; and near the end of that pass, with the gradients and the activations of one layer. Beside either
stand the weights, the optimiser's moments, and the gradients of earlier passes.

Activations are counted as transformers' layers keep them for autograd, in values per token and layer (Korthikanti et
al., https://arxiv.org/abs/2205.05198, section 4, does it for GPT in 16 bits): of a gated layer 8 of the hidden width
(both norms' inputs and results, queries, keys, values, what attention gives), 4 of the feed-forward width (gate, its
activation, up, their product), and an adapter's narrow results. Where the norms' weights learn, 2 more of the hidden
width. GPT-2's activation function is written out in PyTorch and keeps 5 of the feed-forward width. Dropout on a CPU
keeps its noise in 32 bits, and attention that drops some of its scores keeps them three times, and scaled queries and
keys. With gradient checkpointing a layer keeps its input, and one at a time all of the above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.bnb import arithmetic
from backends.messages.training import ALL_LINEAR
from backends.packed import packed_bytes

if TYPE_CHECKING:
    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor
    from backends.messages.training import Recipe

_FLOAT_BYTES: Final = 4
_MOMENTS: Final = 2
KEPT_CHECKPOINTS: Final = 3
"""The two newest, and the best."""
_RUNTIME_BYTES: Final = 300 * 2**20
"""Python with PyTorch, transformers and peft on a CPU, measured."""
_SLICE_BYTES: Final = 16 * 2**20
"""Of logits in float32 at a time (`backends.training.loss`)."""
_ROW_BYTES: Final = 5
"""A token of the data, and whether it is learnt."""
_TOKEN_CHARS: Final = 3


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
    host_saving: int
    """Beside a card: the optimiser's moments on their way into a checkpoint."""
    disk_bytes: int
    """The most that lies there: the checkpoints that stay, and one beside them that is being written. The result is
    smaller than that one."""
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
        return self.data + self.host_runtime + self.host_saving if self.on_card else 0


def price(header: FolderInfo, recipe: Recipe, *, text_bytes: int = 0) -> Price:
    """Of one recipe; `text_bytes` is what `examples.check` has counted. Measured peaks: docs/benchmarks.md."""
    on_card = recipe.device == "cuda"
    layers = [tensor for tensor in header.tensors if arithmetic.is_linear(tensor, {})]
    n_adapters = _adapter_values(header, layers, recipe)
    n_all = sum(tensor.n_elements for tensor in header.tensors)
    trainable = n_all if recipe.method == "full" else n_adapters
    tokens = recipe.micro_batch * recipe.max_length
    moment = _fullest(header, recipe, trainable, tokens)
    learnt = trainable * _FLOAT_BYTES
    runtime = arithmetic.RUNTIME_BYTES["cuda"]
    return Price(
        weights=sum(_weight_bytes(tensor, header, recipe) for tensor in header.tensors),
        adapters=n_adapters * _FLOAT_BYTES,
        gradients=moment.gradients,
        optimiser=learnt * _MOMENTS,
        activations=moment.activations,
        logits=moment.logits,
        runtime=runtime.device if on_card else _RUNTIME_BYTES,
        data=text_bytes // _TOKEN_CHARS * _ROW_BYTES,
        on_card=on_card,
        host_runtime=runtime.host if on_card else 0,
        host_saving=learnt * _MOMENTS if on_card else 0,
        disk_bytes=(KEPT_CHECKPOINTS + 1) * (1 + _MOMENTS) * learnt,
        trainable=trainable,
    )


class _Moment(NamedTuple):
    """Bytes that a step holds at a time, beside weights and moments."""

    gradients: int
    activations: int
    logits: int


def _fullest(header: FolderInfo, recipe: Recipe, trainable: int, tokens: int) -> _Moment:
    """The moment of a step at which it holds most."""
    kept = _Activations(header, recipe, tokens)
    gradients = trainable * _FLOAT_BYTES
    earlier = gradients if recipe.accumulation > 1 else 0
    ends, inputs, layer = kept.ends_bytes, kept.inputs_bytes, kept.layer_bytes + kept.passing_bytes
    is_tied = header.config.get("tie_word_embeddings") is True or not any("lm_head" in t.name for t in header.tensors)
    table = header.n_vocab * kept.hidden * _FLOAT_BYTES if recipe.method == "full" else 0
    """Of the gradient of an embedding, or of the head."""
    first = (gradients - table) // max(kept.n_layers, 1) + (0 if is_tied else table)
    """Of the gradient of the first layer, which comes last."""
    all_layers = inputs if recipe.gradient_checkpointing else kept.n_layers * kept.layer_bytes
    moments = [
        _Moment(earlier, all_layers + ends, kept.logits_bytes(beside=table)),
        _Moment(earlier or table, all_layers + ends + kept.passing_bytes, 0),
        _Moment(earlier or gradients - first, layer + ends, 0),
    ]
    if recipe.gradient_checkpointing:
        moments.append(_Moment(earlier or table, inputs + layer + ends, 0))
    if is_tied:
        moments.append(_Moment(gradients + table, ends, 0))
    return max(moments, key=sum)


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
        return packed_bytes(tensor.n_elements, double=True)
    if recipe.quantization == "8bit" and arithmetic.is_linear(tensor, {}):
        return tensor.n_elements + tensor.shape[0] * _FLOAT_BYTES
    return tensor.n_elements * (2 if recipe.device == "cuda" and recipe.method != "full" else _FLOAT_BYTES)


class _Activations:
    """What a forward pass of so many tokens keeps for its backward pass."""

    def __init__(self, header: FolderInfo, recipe: Recipe, tokens: int) -> None:
        self._header, self._recipe, self._tokens = header, recipe, tokens
        self._size = 2 if recipe.device == "cuda" else _FLOAT_BYTES
        self.hidden = header.number("hidden_size")
        heads = max(header.number("num_attention_heads"), 1)
        head_size = header.number("head_dim") or self.hidden // heads
        self._queries = heads * head_size
        self._keys = (header.number("num_key_value_heads") or heads) * head_size
        self._wide = header.n_ff
        self._heads = heads
        self.n_layers = header.n_layers

    def logits_bytes(self, *, beside: int) -> int:
        """With a slice of them in float32, or with `beside`; their gradient takes their own place."""
        n_bytes = self._tokens * self._header.n_vocab * self._size
        return n_bytes + max(beside, min(n_bytes * _FLOAT_BYTES // self._size, _SLICE_BYTES))

    @property
    def ends_bytes(self) -> int:
        """What stands before the first layer and behind the last."""
        noise = self.hidden * self._noise if self._drops("embd_pdrop") else 0
        return self._tokens * (self.hidden * (self._size + _FLOAT_BYTES) + noise)

    @property
    def inputs_bytes(self) -> int:
        """All that is kept of all layers with gradient checkpointing."""
        return self.n_layers * self._tokens * self.hidden * self._size

    @property
    def passing_bytes(self) -> int:
        """Gradients of activations, while a layer is gone through backwards."""
        return 2 * self._tokens * self._wide * self._size

    @property
    def layer_bytes(self) -> int:
        """What one layer keeps."""
        learns_all = self._recipe.method == "full"
        narrow = 0 if learns_all else self._recipe.rank * self._n_targets
        of_norms = (2 if learns_all else 0) * self.hidden
        values = 4 * self.hidden + 2 * self._queries + 2 * self._keys + of_norms + self._functions * self._wide + narrow
        in_32_bits = 2 * self.hidden * _FLOAT_BYTES if self._recipe.device == "cuda" else 0
        noise = 2 * self.hidden * self._noise if self._drops("resid_pdrop") else 0
        return self._tokens * (values * self._size + in_32_bits + noise + self._scores_bytes)

    @property
    def _functions(self) -> int:
        return 4 if self._is_gated else 5

    @property
    def _is_gated(self) -> bool:
        return any("gate" in tensor.name for tensor in self._header.tensors)

    @property
    def _n_targets(self) -> int:
        found = {t.name for t in self._header.tensors if arithmetic.is_linear(t, {}) and _is_target(t, self._recipe)}
        return round(len(found) / max(self.n_layers, 1))

    @property
    def _scores_bytes(self) -> int:
        """Per token: only attention that drops some of its scores keeps them, on a CPU, and what they are made of."""
        if self._recipe.device == "cuda" or not self._drops("attention_dropout", "attn_pdrop"):
            return 0
        scaled = self._queries + self._keys if self._recipe.micro_batch == 1 else 0  # of more lines, instead of them
        return (3 * self._heads * self._recipe.max_length + scaled) * _FLOAT_BYTES

    @property
    def _noise(self) -> int:
        """Bytes of what dropout keeps of a value."""
        return 1 if self._recipe.device == "cuda" else _FLOAT_BYTES

    def _drops(self, *keys: str) -> bool:
        return any(self._header.config.get(key) for key in keys)
