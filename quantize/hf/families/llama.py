"""Llama 2 and 3, Mistral, and what shares their layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.hf.config import Config
from quantize.hf.families.base import Family, Mapped, plain_decoder_tensor, write_decoder
from quantize.hf.rope import llama3_factors, rope_of


def _write(writer: Any, config: Config) -> None:
    config.require("hidden_act", "silu", "swish")
    write_decoder(writer, config)


def interleaved(values: npt.NDArray[Any], n_heads: int) -> npt.NDArray[Any]:
    """Rows of each head reordered from halves (transformers) to neighbouring pairs (llama.cpp's rotation of Llama)."""
    shape = values.shape
    halves = values.reshape(n_heads, 2, shape[0] // n_heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


def _map(name: str, config: Config) -> Mapped | None:
    if name.endswith((".q_proj.weight", ".q_proj.bias")):
        return Mapped(name, lambda values: interleaved(values, config.n_heads))
    if name.endswith((".k_proj.weight", ".k_proj.bias")):
        n_kv = config.integer("num_key_value_heads", default=config.n_heads)
        return Mapped(name, lambda values: interleaved(values, n_kv))
    return plain_decoder_tensor(name, config)


def _extras(config: Config) -> dict[str, npt.NDArray[np.float32]]:
    rope = rope_of(config)
    return {"rope_freqs.weight": llama3_factors(rope, n_dims=config.head_dim)} if rope.kind == "llama3" else {}


def _warnings(config: Config) -> list[str]:
    window = config.integer("sliding_window", default=0, least=0)
    if not 0 < window < config.integer("max_position_embeddings"):
        return []
    return [
        f"the model was trained with a sliding window of {window} tokens, which llama.cpp does not apply to it: "
        f"beyond {window} tokens of context the texts differ from transformers"
    ]


LLAMA = Family(
    "llama",
    ("LlamaForCausalLM", "MistralForCausalLM"),
    ("llama", "mistral"),
    _write,
    _map,
    extras=_extras,
    warnings=_warnings,
)
