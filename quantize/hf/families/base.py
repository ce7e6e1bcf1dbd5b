"""What a family of architectures says about itself, and the parameters that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from quantize.errors import QuantizeError
from quantize.hf.config import Config
from quantize.hf.rope import rope_of, write_rope
from quantize.hf.tensor import Rearrange


@dataclass(frozen=True)
class Mapped:
    """A tensor that is taken: its name as gguf's table knows it, and what happens to its numbers."""

    name: str
    rearrange: Rearrange | None = None
    add: float = 0.0


def named_as(family: Family, names: Iterable[str]) -> dict[str, str]:
    """Stored name -> name as the family's `map_tensor` wants it, whatever the body is called in the file.

    Versions of transformers and sentence-transformers save the same model as `model.layers.0`, `layers.0`,
    `language_model.model.layers.0` or `0.auto_model.layers.0`; the embedding's name tells. Raises QuantizeError.
    """
    known = list(names)
    tail = family.embedding.removeprefix(family.prefix)
    found = sorted(name.removesuffix(tail) for name in known if f".{name}".endswith(f".{tail}"))
    if len(found) > 1 and family.prefix not in found:
        raise QuantizeError(f"{len(found)} tensors are called {tail}, so which is the model's own cannot be told")
    stored = family.prefix if not found or family.prefix in found else found[0]
    head = family.head
    return {
        name: head
        if head is not None and f".{name}".endswith(f".{head}")
        else family.prefix + name.removeprefix(stored)
        if name.startswith(stored)
        else name
        for name in known
    }


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
    model_types: tuple[str, ...]
    """Values of `model_type` there, by which transformers chooses."""
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
    prefix: str = "model."
    """What the names of the body begin with, as `map_tensor` wants them; files may have another, or none."""
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
