"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: fused projections, which llama.cpp takes as they are, and long contexts."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from quantize.hf.config import Config
from quantize.hf.families.base import Family, plain_decoder_tensor, write_decoder
from quantize.hf.rope import Rope, longrope_attention_factor, longrope_factors, rope_of, write_rope


def _n_rot(config: Config) -> int:
    share = rope_of(config).values.number(
        "partial_rotary_factor", default=config.number("partial_rotary_factor", default=1.0)
    )
    return int(config.head_dim * share)


def _original_context(config: Config, rope: Rope) -> int:
    n_ctx = config.integer("max_position_embeddings")
    return rope.values.integer(
        "original_max_position_embeddings",
        default=config.integer("original_max_position_embeddings", default=n_ctx),
    )


def _write(writer: Any, config: Config) -> None:
    config.require("hidden_act", "silu", "swish")
    rope = rope_of(config)
    n_ctx, n_ctx_original = config.integer("max_position_embeddings"), _original_context(config, rope)
    write_decoder(writer, config, n_rot=_n_rot(config), write_scaling=False)
    write_rope(writer, rope, n_ctx=n_ctx)
    if rope.kind != "yarn":
        writer.add_rope_scaling_orig_ctx_len(n_ctx_original)
    if rope.kind == "longrope":
        factor = longrope_attention_factor(rope, n_ctx=n_ctx, n_ctx_original=n_ctx_original)
        writer.add_rope_scaling_attn_factors(factor)
    writer.add_sliding_window(config.integer("sliding_window", default=0, least=0))


def _extras(config: Config) -> dict[str, npt.NDArray[np.float32]]:
    rope = rope_of(config)
    if rope.kind != "longrope":
        return {}
    long, short = longrope_factors(rope, n_dims=_n_rot(config))
    names = gguf.TENSOR_NAMES
    return {
        f"{names[gguf.MODEL_TENSOR.ROPE_FACTORS_LONG]}.weight": long,
        f"{names[gguf.MODEL_TENSOR.ROPE_FACTORS_SHORT]}.weight": short,
    }


def _warnings(config: Config) -> list[str]:
    window = config.integer("sliding_window", default=0, least=0)
    if not 0 < window < config.integer("max_position_embeddings"):
        return []
    return [f"llama.cpp does not apply the sliding window of {window} tokens: longer contexts differ from transformers"]


PHI3 = Family("phi3", ("Phi3ForCausalLM",), ("phi3",), _write, plain_decoder_tensor, extras=_extras, warnings=_warnings)
