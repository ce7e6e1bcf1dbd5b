"""The bytes a model takes in a given configuration, by component, predicted from its header before anything is loaded.

Owns the arithmetic per backend. What fits where is decided in `server.placement`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from backends.gguf.header import HeaderError, HeaderInfo
from backends.gguf.header import read as read_gguf
from backends.messages import KvType

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Footprint", "HeaderError", "HeaderInfo", "Plan", "inspect", "predict"]

Device = Literal["cuda", "cpu"]

ALL_LAYERS: Final = -1
BATCH_TOKENS: Final = 512
"""Tokens of one forward pass at most; compute buffers are made for that many."""
CELL_BLOCK: Final = 256
"""llama.cpp rounds each sequence's cells up to this."""
KV_BYTES: Final[Mapping[KvType, tuple[int, int]]] = MappingProxyType(
    {
        "f32": (1, 4),
        "f16": (1, 2),
        "bf16": (1, 2),
        "q8_0": (32, 34),
        "q5_1": (32, 24),
        "q5_0": (32, 22),
        "q4_1": (32, 20),
        "q4_0": (32, 18),
    }
)
"""Elements per block, bytes per block."""
_RUNTIME_BYTES: Final[Mapping[Device, int]] = MappingProxyType({"cpu": 32 * 2**20, "cuda": 400 * 2**20})
"""The interpreter with its libraries, measured; on a GPU the driver's context and cuBLAS, as published."""
_VOCABULARY_BYTES: Final = 320
"""Host memory per token of the vocabulary: its text, its score, and the tables that find it."""


@dataclass(frozen=True)
class Plan:
    """How a model is loaded."""

    context: int
    """Tokens one request may use."""
    parallel: int
    kv_type: KvType
    gpu_layers: int
    """Layers on the GPU, the output layer counted; -1 means all."""
    device: Device

    @property
    def cells(self) -> int:
        """KV cells in all."""
        return math.ceil(self.context / CELL_BLOCK) * CELL_BLOCK * self.parallel


@dataclass(frozen=True)
class Footprint:
    """Bytes on the budgeted device, by component."""

    weights: int
    kv: int
    compute: int
    runtime: int
    projector: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.compute + self.runtime + self.projector

    @property
    def parts(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


def inspect(backend: str, path: Path) -> HeaderInfo:
    """Read what a model's files say about it. Raises HeaderError; blocks on the disk."""
    if backend != "gguf":
        raise HeaderError(f"this version serves GGUF files; it has no '{backend}' backend for model folders")
    header = read_gguf(path)
    if header.n_layers > len(header.tensors):
        raise HeaderError(f"the file announces {header.n_layers} layers, but holds {len(header.tensors)} tensors")
    return header


def predict(header: HeaderInfo, plan: Plan) -> Footprint:
    """The price of a plan in bytes of the plan's device."""
    share = _layer_share(header, plan)
    return Footprint(
        weights=_weight_bytes(header, plan),
        kv=math.ceil(_kv_bytes(header, plan) * share),
        compute=_compute_bytes(header, plan),
        runtime=_RUNTIME_BYTES[plan.device] + (header.n_vocab * _VOCABULARY_BYTES if plan.device == "cpu" else 0),
    )


def _layer_share(header: HeaderInfo, plan: Plan) -> float:
    """The part of the transformer blocks that lies on the budgeted device."""
    if plan.device == "cpu" or plan.gpu_layers == ALL_LAYERS or header.n_layers == 0:
        return 1.0
    blocks = min(max(plan.gpu_layers - 1, 0), header.n_layers)  # the output layer is the first to go there
    return blocks / header.n_layers


def _weight_bytes(header: HeaderInfo, plan: Plan) -> int:
    if plan.device == "cpu":
        return header.weight_bytes
    on_gpu = header.n_layers + 1 if plan.gpu_layers == ALL_LAYERS else plan.gpu_layers
    first = header.n_layers - on_gpu  # llama.cpp offloads the last layers first, and the output before any
    n_bytes = 0
    for tensor in header.tensors:
        head, _, rest = tensor.name.partition(".")
        number = rest.partition(".")[0]
        if head == "blk" and number.isdecimal():
            n_bytes += tensor.n_bytes if int(number) >= first + 1 or on_gpu > header.n_layers else 0
        elif head != "token_embd" or not _has_output(header):
            n_bytes += tensor.n_bytes if on_gpu > 0 else 0
    return n_bytes


def _has_output(header: HeaderInfo) -> bool:
    return any(tensor.name == "output.weight" for tensor in header.tensors)


def _kv_bytes(header: HeaderInfo, plan: Plan) -> int:
    """Every layer as full attention over every cell: exact for plain decoders, too much for sliding windows."""
    n_heads = max(header.number("attention.head_count", 1), 1)
    head_size = header.number("embedding_length") // n_heads
    key_size = header.number("attention.key_length", head_size)
    value_size = header.number("attention.value_length", head_size)
    kv_heads = header.metadata.get(f"{header.architecture}.attention.head_count_kv", n_heads)
    n_layers = header.n_layers
    if isinstance(kv_heads, list):
        heads = sum(max(0, h) for h in kv_heads if isinstance(h, int))
    else:
        heads = n_layers * (max(0, kv_heads) if isinstance(kv_heads, int) else n_heads)
    block, block_bytes = KV_BYTES[plan.kv_type]
    return heads * (key_size + value_size) * plan.cells // block * block_bytes


def _compute_bytes(header: HeaderInfo, plan: Plan) -> int:
    """Buffers of the largest graph: activations of one batch, the attention mask (f16), logits.

    The factors are fitted to what llama.cpp reports for llama models of 192 to 1024 dimensions, from above.
    """
    embedding = header.number("embedding_length")
    feed_forward = header.number("feed_forward_length")
    activations = BATCH_TOKENS * (8 * embedding + 2 * feed_forward) * 4
    mask = BATCH_TOKENS * (plan.cells // plan.parallel) * 2
    logits = plan.parallel * header.n_vocab * 4
    return activations + mask + logits
