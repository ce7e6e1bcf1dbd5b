"""Gemma 2 and 3 (text): norms around zero, soft caps, layers with and without a sliding window."""

from __future__ import annotations

import math
from typing import Any

from quantize.errors import QuantizeError
from quantize.hf.config import Config
from quantize.hf.families.base import Family, Mapped, plain_decoder_tensor, write_decoder
from quantize.hf.rope import rope_of

_VISION = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


def _map(name: str, config: Config) -> Mapped | None:
    if name.startswith(_VISION):
        return None
    if name.endswith("norm.weight"):
        return Mapped(name, add=1.0)
    return plain_decoder_tensor(name, config)


def _check_scale(config: Config, *, layers_of_27b: int) -> None:
    """llama.cpp derives the scale of attention from the sizes; Gemma's file may say another."""
    derived = config.n_embd // config.n_heads if config.n_layers == layers_of_27b else config.head_dim
    given = config.number("query_pre_attn_scalar", default=256.0)
    if not math.isclose(given, derived):
        raise QuantizeError(f"query_pre_attn_scalar is {given:g} in config.json; llama.cpp computes with {derived}")


def _period(config: Config, *, default: int) -> int:
    """Every how many layers one sees the whole context."""
    kinds = config.values.get("layer_types")
    if not isinstance(kinds, list):
        return config.integer("sliding_window_pattern", "_sliding_window_pattern", default=default)
    periods: list[int] = [default, *range(2, len(kinds) + 2)]
    for period in periods:
        if kinds == ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(len(kinds))]:
            return period
    raise QuantizeError("layer_types in config.json repeat with no period, which llama.cpp cannot be told")


def _write_common(writer: Any, config: Config, *, default_period: int) -> None:
    config.require("hidden_activation", "gelu_pytorch_tanh")
    config.require("attention_bias", False)
    writer.add_sliding_window(config.integer("sliding_window", default=4096))
    period = _period(config, default=default_period)
    if period != default_period:
        writer.add_sliding_window_pattern(period)


def _write_gemma2(writer: Any, config: Config) -> None:
    filled = Config({"head_dim": 256, **config.values})
    _check_scale(filled, layers_of_27b=46)
    write_decoder(writer, filled, n_ctx_default=8192)
    _write_common(writer, filled, default_period=2)
    for key, write in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        if config.values.get(key) is None:
            raise QuantizeError(f"config.json has no {key}, which llama.cpp always applies to Gemma 2")
        write(config.number(key))


def _write_gemma3(writer: Any, config: Config) -> None:
    filled = Config({"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, **config.values})
    _check_scale(filled, layers_of_27b=62)
    write_decoder(writer, filled, n_ctx_default=131_072, theta_default=1_000_000.0)
    _write_common(writer, filled, default_period=6)
    config.require("attn_logit_softcapping")
    if config.values.get("final_logit_softcapping") is not None:
        writer.add_final_logit_softcapping(config.number("final_logit_softcapping"))
    writer.add_rope_freq_base_swa(_local_rope(config))


def _local_rope(config: Config) -> float:
    """Frequency base of the layers with a window."""
    if "sliding_attention" in config.table("rope_parameters").values:
        rope = rope_of(config, layer="sliding_attention")
        if rope.kind != "default":
            raise QuantizeError(
                f"layers with a window have the rope scaling {rope.kind}, which llama.cpp cannot be told"
            )
        return rope.theta
    return config.number("rope_local_base_freq", default=10_000.0)


GEMMA2 = Family("gemma2", ("Gemma2ForCausalLM",), ("gemma2",), _write_gemma2, _map, tied_by_default=True)
GEMMA3 = Family(
    "gemma3",
    ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    ("gemma3", "gemma3_text"),
    _write_gemma3,
    _map,
    tied_by_default=True,
)
