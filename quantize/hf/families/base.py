"""What a family of architectures says about itself, and the parameters that most of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.hf.config import Config
from quantize.hf.rope import rope_of, write_rope
from quantize.hf.tensor import Rearrange


@dataclass(frozen=True)
class Mapped:
    """A tensor that is taken: its name as gguf's table knows it, and what happens to its numbers."""

    name: str
    rearrange: Rearrange | None = None
    add: float = 0.0


def no_warnings(config: Config) -> list[str]:
    """For a family that llama.cpp computes exactly as transformers does."""
    del config
    return []


def no_extras(config: Config) -> dict[str, npt.NDArray[np.float32]]:
    """For a family whose file holds nothing but the tensors of the folder."""
    del config
    return {}


@dataclass(frozen=True)
class Family:
    """How the models of one kind become a GGUF file."""

    gguf_name: str
    """general.architecture."""
    hf_names: tuple[str, ...]
    """Values of `architectures` in config.json."""
    write_parameters: Callable[[Any, Config], None]
    """Puts the hyperparameters into a GGUFWriter; raises QuantizeError for what llama.cpp computes otherwise."""
    map_tensor: Callable[[str, Config], Mapped | None]
    """What becomes of a tensor of this name; None leaves it out."""
    extras: Callable[[Config], dict[str, npt.NDArray[np.float32]]] = no_extras
    """Tensors that are not in the folder: rope factors."""
    warnings: Callable[[Config], list[str]] = no_warnings
    """Where llama.cpp differs from transformers without refusing."""
    is_encoder: bool = False
    tied_by_default: bool = False
    """`tie_word_embeddings` where config.json does not say."""
    embedding: str = "model.embed_tokens.weight"
    """Name of the token embedding after `map_tensor`; its rows are the vocabulary."""
    head: str | None = "lm_head.weight"
    f32_names: tuple[str, ...] = field(default=())
    """Matrices that llama.cpp wants as F32, by the start of their GGUF name."""


def write_decoder(
    writer: Any,
    config: Config,
    *,
    n_rot: int | None = None,
    theta_default: float = 10000.0,
    n_ctx_default: int | None = None,
    write_scaling: bool = True,
) -> None:
    """Sizes, heads, norm epsilon, activation check and rotation of a decoder with RMS norms and rotary positions."""
    n_ctx = config.integer("max_position_embeddings", default=n_ctx_default)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.integer("intermediate_size"))
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.integer("num_key_value_heads", default=config.n_heads))
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(n_rot or config.head_dim)
    writer.add_layer_norm_rms_eps(config.number("rms_norm_eps", default=1e-6))
    if write_scaling:
        write_rope(writer, rope_of(config, theta_default=theta_default), n_ctx=n_ctx)


def plain_decoder_tensor(name: str, config: Config) -> Mapped | None:
    """Every tensor as it is, but computed buffers that old checkpoints carry."""
    del config
    return None if name.endswith((".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")) else Mapped(name)
