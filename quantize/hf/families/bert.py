"""BERT-type encoders for embeddings (all-MiniLM and its kin)."""

from __future__ import annotations

from typing import Any

from quantize.hf.config import Config
from quantize.hf.families.base import Family, Mapped

_LEFT_OUT = ("embeddings.position_ids", "pooler.", "cls.", "classifier.")


def _write(writer: Any, config: Config) -> None:
    config.require("hidden_act", "gelu")
    config.require("position_embedding_type", "absolute")
    config.require("is_decoder", False)
    writer.add_context_length(config.integer("max_position_embeddings"))
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.integer("intermediate_size"))
    writer.add_head_count(config.n_heads)
    writer.add_layer_norm_eps(config.number("layer_norm_eps", default=1e-12))
    writer.add_causal_attention(False)


def _map(name: str, config: Config) -> Mapped | None:
    del config
    if name.startswith(_LEFT_OUT):
        return None
    return Mapped(name.replace(".gamma", ".weight").replace(".beta", ".bias"))


BERT = Family(
    "bert",
    ("BertModel", "BertForMaskedLM"),
    ("bert",),
    _write,
    _map,
    is_encoder=True,
    prefix="",
    embedding="embeddings.word_embeddings.weight",
    head=None,
    f32_names=("position_embd", "token_types"),
)
