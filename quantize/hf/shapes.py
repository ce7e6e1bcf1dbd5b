"""Sizes that config.json says against those of the stored matrices: what is missing is read there, a lie is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from quantize.errors import QuantizeError
from quantize.hf.config import Config
from quantize.hf.safetensors import Stored
from quantize.hf.tensor import Planned
from quantize.words import shown


def with_head_dim(values: Mapping[str, Any], tensors: Iterable[Stored]) -> Mapping[str, Any]:
    """The configuration with a width of heads, which older versions leave to the sizes and newer ones to the class."""
    heads = values.get("num_attention_heads")
    if values.get("head_dim") is not None or not isinstance(heads, int) or isinstance(heads, bool) or heads < 1:
        return values
    query = next((one for one in tensors if one.name.endswith(".q_proj.weight") and len(one.shape) == 2), None)
    return values if query is None or query.shape[0] % heads else {**values, "head_dim": query.shape[0] // heads}


def check_shapes(tensors: Iterable[Planned], config: Config) -> None:
    """Raises QuantizeError for a matrix of a layer that has another size than config.json says."""
    for tensor in tensors:
        match = re.fullmatch(r"blk\.\d+\.(attn_q|attn_k|attn_v|ffn_gate|attn_qkv)\.weight", tensor.name)
        if match is None or len(tensor.shape) != 2 or "num_key_value_heads" not in config.values:
            continue
        wanted, why = _rows(match[1], config)
        if wanted is not None and tensor.shape != (wanted, config.n_embd):
            raise QuantizeError(
                f"config.json says {why} and hidden_size = {config.n_embd}, which makes {shown(tensor.name)} "
                f"{wanted} x {config.n_embd}; it is stored with {' x '.join(map(str, tensor.shape))}"
            )


def _rows(kind: str, config: Config) -> tuple[int | None, str]:
    n_kv, width = config.integer("num_key_value_heads", default=config.n_heads), config.head_dim
    if kind == "attn_q":
        return config.n_heads * width, f"{config.n_heads} heads of {width}"
    if kind == "attn_qkv":
        return (config.n_heads + 2 * n_kv) * width, f"{config.n_heads} heads of {width}, {n_kv} for keys and values"
    if kind == "ffn_gate":
        return config.integer("intermediate_size"), f"intermediate_size = {config.integer('intermediate_size')}"
    return n_kv * width, f"{n_kv} heads of {width} for keys and values"
