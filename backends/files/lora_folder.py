"""A LoRA adapter as peft saves it: adapter_config.json and the headers of adapter_model.safetensors, both distrusted.

`base_model_name_or_path` and `revision` are never followed: which base an adapter goes with is the operator's word, and
whether it fits is told by its shapes. What changes a base otherwise than by pairs of small matrices is refused by name.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Final

from backends.files import lora_patterns, model_files, tensors
from backends.files.adapters import MOST_RANK, PEFT_CONFIG, PEFT_WEIGHTS, AdapterError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from backends.files.tensors import StoredTensor

_NAME: Final = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")
_COPY: Final = re.compile(r"base_model\.model\.(?P<layer>.+?)(?:\.base_layer)?\.weight")
FLOATS: Final = ("F32", "F16", "BF16")
_PICKLES: Final = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_BASE_CHANGED: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of `init_lora_weights` with which training began from other base weights than the published ones."""
_REFUSED: Final = {
    "use_dora": "uses DoRA, which scales the base's columns",
    "lora_bias": "has biases beside its matrices (lora_bias)",
    "modules_to_save": "replaces whole layers (modules_to_save)",
    "trainable_token_indices": "replaces rows of the embedding (trainable_token_indices)",
    "target_parameters": "changes parameters that are no linear layers (target_parameters)",
    "alora_invocation_tokens": "is activated by certain tokens (aLoRA)",
    "layer_replication": "repeats layers of its base (layer_replication)",
    "use_qalora": "pools its inputs (QALoRA)",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "arrow_config": "routes between adapters (Arrow)",
    "velora_config": "projects its inputs (VeLoRA)",
    "monteclora_config": "draws its weights (MonteCLoRA)",
    "kasa_config": "changes its base's singular values (KaSA)",
}
WITHOUT_COPIES: Final = "hint: save it with peft's save_pretrained(..., save_embedding_layers=False)"
MERGE: Final = "hint: merge it into its base with peft's merge_and_unload, and serve the merged folder"


@dataclass(frozen=True)
class LoraPair:
    """What an adapter adds to one linear layer: `x @ a.T @ b.T * scale`."""

    layer: str
    """As transformers calls it: `model.layers.0.self_attn.q_proj`."""
    a: StoredTensor
    """`(rank, in)`."""
    b: StoredTensor
    """`(out, rank)`."""
    scale: float

    @property
    def rank(self) -> int:
        """Columns between the two."""
        return self.a.shape[0]

    @property
    def n_values(self) -> int:
        """Of both matrices."""
        return self.a.n_elements + self.b.n_elements


@dataclass(frozen=True)
class LoraFolder:
    """One adapter: checked in itself, not yet held against a base."""

    path: Path
    pairs: tuple[LoraPair, ...]
    copies: Mapping[str, StoredTensor] = field(default_factory=lambda: MappingProxyType({}))
    """Whole layers by their names, which have to be the base's own (`lora_copies`): peft saves them with a head."""

    @property
    def rank(self) -> int:
        """The largest."""
        return max(pair.rank for pair in self.pairs)

    def check_base(self, shapes: Mapping[str, tuple[int, ...] | None]) -> None:
        """Hold every pair against the base's linear layers, `(out, in)` or None where stored otherwise.

        Raises AdapterError with the first that does not fit.
        """
        for pair in self.pairs:
            if pair.layer not in shapes:
                raise AdapterError(
                    f"it changes {pair.layer[:120]}, which is no linear layer of this model. hint: is it an adapter of "
                    "this very base?"
                )
            shape, fits = shapes[pair.layer], (pair.b.shape[0], pair.a.shape[1])
            if shape is not None and fits not in (shape, shape[::-1]):
                raise AdapterError(
                    f"it is made for {fits[1]} inputs and {fits[0]} outputs of {pair.layer[:120]}, and this model has "
                    f"{shape[1]} and {shape[0]} there. hint: is it an adapter of this very base?"
                )

    def check_copies(self, own: Mapping[str, StoredTensor]) -> None:
        """Hold the copies' shapes against the base's layers of the same names. Raises AdapterError."""
        for layer, copy in self.copies.items():
            its = own.get(layer)
            if its is None or its.shape != copy.shape or copy.dtype not in FLOATS:
                had = "has not" if its is None else f"has as {_shape(its)}"
                raise AdapterError(
                    f"it carries a layer, {copy.name[:120]} ({_shape(copy)}), which this model {had}. hint: is it an "
                    "adapter of this very base?"
                )


def read(path: Path) -> LoraFolder:
    """Read and check an adapter's folder; no weights are read. Raises AdapterError; blocks on the disk."""
    try:
        _check_kind(path)
        config = model_files.read_object(path / PEFT_CONFIG)
        check_config(config)
        if config.get("task_type") not in (None, "CAUSAL_LM"):
            raise AdapterError(f"it is for the task {str(config['task_type'])[:40]}, and this model generates text")
        stored = tensors.of_file(path / PEFT_WEIGHTS)[0]
        copies = _copies(stored)
        pairs = _pairs([one for one in stored if _copy(one) is None], config)
    except model_files.FileError as error:
        raise AdapterError(str(error)) from None
    return LoraFolder(path, pairs, copies)


def _copies(stored: list[StoredTensor]) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for tensor in stored:
        match = _copy(tensor)
        if match is not None and found.setdefault(match["layer"], tensor) is not tensor:
            raise AdapterError(f"it carries {match['layer'][:120]} twice. hint: was it saved by peft?")
    return found


def _copy(stored: StoredTensor) -> re.Match[str] | None:
    """Of a matrix that is a layer of the base's, and no half of a pair."""
    return None if ".lora_" in stored.name or len(stored.shape) != 2 else _COPY.fullmatch(stored.name)


def _check_kind(path: Path) -> None:
    if str(path).startswith("hf:"):
        raise AdapterError(f"{path} is not in the local cache. hint: `hf download {str(path)[3:]}` fetches it")
    if not model_files.is_there(path):
        raise AdapterError(f"there is no file or folder {path}")
    if not path.is_dir():
        raise AdapterError(
            f"{path.name} is a file, and a model folder takes adapters as folders. hint: name the folder that peft's "
            f"save_pretrained has written, with {PEFT_CONFIG}"
        )
    if not model_files.is_there(path / PEFT_CONFIG):
        raise AdapterError(f"{path.name} holds no {PEFT_CONFIG}. hint: name the folder that peft has written")
    if model_files.is_there(path / PEFT_WEIGHTS):
        return
    if found := next((name for name in _PICKLES if model_files.is_there(path / name)), None):
        raise AdapterError(
            f"its weights are pickled ({found}), and a pickle can run code when it is read. hint: save it again as "
            "safetensors, on a machine that trusts it"
        )
    raise AdapterError(f"{path.name} has no {PEFT_WEIGHTS}. hint: was it downloaded completely?")


def check_config(config: Mapping[str, Any], source: str = PEFT_CONFIG) -> None:
    """Raises AdapterError for what is no plain LoRA; `source` is what says it."""
    if config.get("peft_type") != "LORA":
        kind = str(config.get("peft_type"))[:40]
        raise AdapterError(f"{source} says peft_type = {kind!r}, and only LORA is served. {MERGE}")
    for key, does in _REFUSED.items():
        if config.get(key):
            raise AdapterError(f"it {does}, which is not served. {MERGE}")
    if not isinstance(config.get("use_rslora", False), (bool, NoneType)):
        raise AdapterError(f"{source} says use_rslora = {str(config['use_rslora'])[:20]!r}, and true or false is meant")
    lora_patterns.check(config, source)
    if config.get("bias", "none") != "none":
        raise AdapterError(f"it changes the base's biases (bias = {str(config['bias'])[:20]}). {MERGE}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGED):
        raise AdapterError(
            f"it was trained on changed base weights (init_lora_weights = {start[:20]}). hint: save it with peft's "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def _pairs(stored: list[StoredTensor], config: Mapping[str, Any]) -> tuple[LoraPair, ...]:
    sides: dict[str, dict[str, StoredTensor]] = {}
    for tensor in stored:
        match = _NAME.fullmatch(tensor.name)
        if match is None:
            raise AdapterError(f"it holds {tensor.name[:120]!r}, which is no matrix of a LoRA pair. {MERGE}")
        check_matrix(tensor, n_axes=(2,))
        sides.setdefault(match["layer"], {})[match["side"]] = tensor
    if not sides:
        raise AdapterError(f"{PEFT_WEIGHTS} is empty. hint: was it saved after training, with save_pretrained?")
    if (layer := next((layer for layer in sorted(sides) if ".experts." in layer), None)) is not None:
        raise AdapterError(f"it changes {layer[:120]}, an expert that only some rows pass. {MERGE}")
    return tuple(pair(layer, found, config) for layer, found in sorted(sides.items()))


def _shape(tensor: StoredTensor) -> str:
    return f"{tensor.dtype} {'x'.join(map(str, tensor.shape))}"


def check_matrix(tensor: StoredTensor, n_axes: tuple[int, ...]) -> None:
    """Raises AdapterError for what is no half of a pair."""
    if tensor.dtype not in FLOATS or len(tensor.shape) not in n_axes:
        raise AdapterError(f"{tensor.name[:120]} is {_shape(tensor)}, and a pair has matrices of floats")


def pair(
    layer: str, found: Mapping[str, StoredTensor], config: Mapping[str, Any], source: str = PEFT_CONFIG
) -> LoraPair:
    """Of the sides `A` and `B` of one layer, by what `source` says of ranks and scales. Raises AdapterError."""
    if len(found) != 2:
        raise AdapterError(f"{layer[:120]} has only one matrix of its pair. hint: was it saved completely?")
    a, b = found["A"], found["B"]
    rank = _count(config, layer, source)
    if not a.shape[0] == b.shape[1] == rank or not 0 < rank <= MOST_RANK:
        raise AdapterError(
            f"{layer[:120]} has matrices of rank {a.shape[0]} and {b.shape[1]}, {source} says {rank:.6g}, and at most "
            f"{MOST_RANK} are served. hint: are both files of one adapter?"
        )
    alpha = lora_patterns.number(config, "lora_alpha", "alpha_pattern", layer, source)
    return LoraPair(layer, a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank))


def _count(config: Mapping[str, Any], layer: str, source: str) -> int:
    value = lora_patterns.number(config, "r", "rank_pattern", layer, source)
    if value != int(value):
        raise AdapterError(f"{source} says r = {value}, which is no count")
    return int(value)
