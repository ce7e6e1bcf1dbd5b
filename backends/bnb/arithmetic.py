"""What a Hugging Face folder takes, computed from its headers: weights as bitsandbytes packs them, and the KV cache.

Embeddings, the output head and the norms stay as they are. Checkpoints that are stored quantised take what they store.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, assert_never

from backends.bnb.adapters import held_bytes
from backends.bnb.layout import input_limit
from backends.bnb.sight import is_of_language
from backends.files import adapters
from backends.images import ON_ITS_WAY_BYTES
from backends.messages import EncoderPlan, GeneratorPlan
from backends.messages.plans import whole_blocks
from backends.packed import int8_bytes, packed_bytes
from backends.plan import BATCH_TOKENS, CONSTRAINT_BYTES, SCORED_ROWS, Amount, Footprint, Parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.bnb.header import FolderInfo
    from backends.files.tensors import StoredTensor
    from backends.messages import Device, KvType, TextPlan

RUNTIME_BYTES: Final[Mapping[Device, Amount]] = MappingProxyType(
    {"cpu": Amount(host=290 * 2**20), "cuda": Amount(device=600 * 2**20, host=800 * 2**20)}
)
"""Python with PyTorch; on a card the driver's context and cuBLAS, as published, and what CUDA takes of host memory,
which was never measured before the first load."""
GROWTH: Final = 64
"""Cells by which the rows of a shared pool grow."""
_FLOAT_BYTES: Final = 4
_TYPES: Final[Mapping[str, KvType]] = MappingProxyType(
    {"bfloat16": "bf16", "BF16": "bf16", "float16": "f16", "F16": "f16"}
)
_FLOATS: Final = ("F64", "F32", "F16", "BF16")
_SKIPPED: Final = ("embed", "lm_head", "output.weight", "norm", "wte", "wpe")


def predict(folder: FolderInfo, plan: TextPlan) -> Footprint:
    """What a plan takes of either memory; layers on the CPU beside a card are not possible with this backend."""
    runtime = RUNTIME_BYTES[plan.device]
    match plan:
        case EncoderPlan():
            constraints = on_way = 0
            weights = sum(tensor_bytes(tensor, folder, plan.device) for tensor in folder.tensors)
            parts = Parts(weights, kv=0, compute=pass_bytes(folder, plan))
        case GeneratorPlan():
            constraints = folder.n_vocab * CONSTRAINT_BYTES
            eyes, on_way = eyes_bytes(folder, plan.device)
            weights = weight_bytes(folder, plan.device)
            parts = Parts(weights, kv=cache_bytes(folder, plan), compute=compute_bytes(folder, plan), projector=eyes)
        case _:
            assert_never(plan)
    if folder.draft is not None and isinstance(plan, GeneratorPlan):
        parts = replace(parts, further={"draft": _draft_bytes(folder.draft, plan)})
    if served := adapters.served(folder.adapters):
        joins = partial(_is_plain, folder) if plan.device == "cpu" else None
        n_bytes = held_bytes(served, folder, value_bytes(folder, plan.device), joins=joins)
        parts = replace(parts, further={**parts.further, adapters.KEY: n_bytes})
    if plan.device == "cpu":
        return Footprint(host=replace(parts, runtime=runtime.host + constraints, projector=parts.projector + on_way))
    return Footprint(
        replace(parts, runtime=runtime.device), Parts(runtime=runtime.host + constraints, projector=on_way)
    )


def _draft_bytes(draft: FolderInfo, plan: GeneratorPlan) -> int:
    """The model that drafts: what it adds where the other one computes."""
    own = plan.of_draft(draft.n_ctx_train)
    return weight_bytes(draft, plan.device) + cache_bytes(draft, own) + compute_bytes(draft, own)


def pass_tokens(device: Device) -> int:
    """Tokens of an embedding model's pass, padding included, where one input is not longer."""
    return 4096 if device == "cuda" else 512


def pass_bytes(folder: FolderInfo, plan: EncoderPlan) -> int:
    """Activations of an embedding model's largest pass, its mask, and one matrix unpacked."""
    size = value_bytes(folder, plan.device)
    longest = input_limit(plan.context, folder.config)
    tokens = max(longest, pass_tokens(plan.device))
    activations = tokens * (8 * folder.number("hidden_size") + 3 * folder.n_ff) * size
    largest = max((t.n_elements for t in folder.tensors if is_linear(t, folder.quantization)), default=0)
    return activations + tokens * longest * size + (largest * size if folder.quantization else 0)


def weight_bytes(folder: FolderInfo, device: Device) -> int:
    """All tensors; a processor keeps a head that is tied to the embedding a second time, in an order of its own."""
    tied = folder.config.get("tie_word_embeddings") is True and device == "cpu"
    again = folder.n_vocab * folder.number("hidden_size") * value_bytes(folder, device) if tied else 0
    return again + sum(
        tensor_bytes(tensor, folder, device) for tensor in folder.tensors if not is_of_eyes(tensor, folder)
    )


def eyes_bytes(folder: FolderInfo, device: Device) -> tuple[int, int]:
    """What the part that sees takes where the model computes, and in host memory for images on their way."""
    sight, most = folder.sight, folder.image_max_tokens
    if sight is None:
        return 0, 0
    weights = sum(tensor_bytes(tensor, folder, device) for tensor in folder.tensors if is_of_eyes(tensor, folder))
    on_way = sight.kept_bytes(most, folder.number("hidden_size")) + ON_ITS_WAY_BYTES
    return weights + encoder_bytes(folder, device), on_way


def encoder_bytes(folder: FolderInfo, device: Device) -> int:
    """What the part that sees computes an image in."""
    sight = folder.sight
    return 0 if sight is None else sight.encoder_bytes(folder.image_max_tokens, value_bytes(folder, device))


def is_of_eyes(tensor: StoredTensor, folder: FolderInfo) -> bool:
    """Whether a tensor is of the part that sees."""
    return folder.sight is not None and not is_of_language(tensor.name)


def tensor_bytes(tensor: StoredTensor, folder: FolderInfo, device: Device) -> int:
    """What one tensor takes once it is loaded."""
    if folder.stored_quantised:
        return tensor.n_bytes
    stays = is_of_eyes(tensor, folder) and folder.sight is not None and not folder.sight.quantised
    if stays or not is_linear(tensor, folder.quantization):
        return tensor.n_elements * value_bytes(folder, device) if tensor.dtype in _FLOATS else tensor.n_bytes
    if folder.quantization.get("load_in_8bit"):
        return int8_bytes(tensor.n_elements, tensor.shape[0])
    if folder.quantization.get("load_in_4bit"):
        return packed_bytes(tensor.n_elements, double=bool(folder.quantization.get("bnb_4bit_use_double_quant")))
    return tensor.n_elements * value_bytes(folder, device)


def is_linear(tensor: StoredTensor, quantization: Mapping[str, Any]) -> bool:
    """Whether bitsandbytes takes it: a matrix of a linear layer that is not to be skipped."""
    skipped = quantization.get("llm_int8_skip_modules")
    named = tuple(s for s in skipped if isinstance(s, str)) if isinstance(skipped, list) else ()
    name = tensor.name
    return len(tensor.shape) == 2 and name.endswith(".weight") and not any(part in name for part in (*_SKIPPED, *named))


def _is_plain(folder: FolderInfo, tensor: StoredTensor) -> bool:
    """Whether a linear layer is computed as it is, unquantised."""
    quantised = not folder.stored_quantised and folder.quantization and is_linear(tensor, folder.quantization)
    return tensor.dtype in _FLOATS and not quantised


def computed_type(folder: FolderInfo, device: Device) -> KvType:
    """Of weights that are not quantised, and of the cache: a processor computes float16 in another type."""
    stored = _TYPES.get(str(folder.config.get("dtype")), "f32")
    if device == "cuda" or stored == "bf16":
        return stored
    return "bf16" if folder.quantization else "f32"


def value_bytes(folder: FolderInfo, device: Device) -> int:
    """Of one value of that type."""
    return 4 if computed_type(folder, device) == "f32" else 2


def cache_bytes(folder: FolderInfo, plan: GeneratorPlan) -> int:
    """Keys and values; layers with a sliding window keep the window and one pass."""
    n_heads = max(folder.number("num_attention_heads", 1), 1)
    kv_heads = folder.number("num_key_value_heads", n_heads)
    head_size = folder.number("head_dim") or folder.number("hidden_size") // n_heads
    per_cell = 2 * kv_heads * head_size * value_bytes(folder, plan.device)
    window = folder.number("sliding_window")
    kinds = folder.config.get("layer_types")
    kinds = kinds if isinstance(kinds, list) else []
    n_windowed = sum(1 for kind in kinds[: folder.n_layers] if kind == "sliding_attention") if window else 0
    ring = ring_cells(window or None, plan.cells_each, BATCH_TOKENS)
    cells = (folder.n_layers - n_windowed) * plan.cells_each + n_windowed * ring
    rows = pool_rows(plan.cells, plan.cells_each, plan.parallel) if plan.kv_tokens else plan.parallel
    return round(per_cell * cells * rows)


def pool_rows(pool_cells: int, cells_each: int, n_rows: int) -> float:
    """How many whole rows a pool is worth: its rows grow in blocks, so each may have one begun."""
    return min(float(n_rows), (pool_cells + n_rows * GROWTH) / cells_each)


def ring_cells(window: int | None, cells: int, pass_tokens: int) -> int:
    """Cells a layer keeps of each row: a pass writes all its tokens before the first of them looks back."""
    return cells if window is None else min(cells, whole_blocks(window + pass_tokens))


def compute_bytes(folder: FolderInfo, plan: GeneratorPlan) -> int:
    """Activations of one batch, logits, the mask, and one matrix unpacked for a long prompt."""
    size = value_bytes(folder, plan.device)
    embedding, ff = folder.number("hidden_size"), folder.n_ff
    activations = BATCH_TOKENS * (8 * embedding + 3 * ff) * size
    logits = (plan.parallel + SCORED_ROWS) * folder.n_vocab * _FLOAT_BYTES
    largest = max((t.n_elements for t in folder.tensors if is_linear(t, folder.quantization)), default=0)
    unpacked = largest * size if folder.quantization else 0
    return activations + 2 * logits + BATCH_TOKENS * plan.context * size + unpacked
