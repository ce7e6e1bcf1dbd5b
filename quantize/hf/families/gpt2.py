"""GPT-2: learned positions, layer norms with biases, matrices stored with inputs as rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from quantize.hf.config import Config
from quantize.hf.families.base import Family, Mapped

_TRANSPOSED = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


def _write(writer: Any, config: Config) -> None:
    config.require("activation_function", "gelu_new", "gelu_pytorch_tanh")
    config.require("scale_attn_by_inverse_layer_idx", False)
    config.require("scale_attn_weights", True)
    config.require("add_cross_attention", False)
    writer.add_context_length(config.integer("n_positions", "max_position_embeddings", default=1024))
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.integer("n_inner", default=4 * config.n_embd))
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.number("layer_norm_epsilon", default=1e-5))


def _map(name: str, config: Config) -> Mapped | None:
    del config
    if name.endswith((".attn.bias", ".attn.masked_bias")):
        return None
    if name.endswith(_TRANSPOSED):
        return Mapped(name, lambda values: np.ascontiguousarray(values.T))
    return Mapped(name)


GPT2 = Family(
    "gpt2",
    ("GPT2LMHeadModel",),
    ("gpt2",),
    _write,
    _map,
    tied_by_default=True,
    prefix="transformer.",
    embedding="transformer.wte.weight",
    f32_names=("position_embd",),
)
