"""CANARY-MTP: CANARY-P's table behind the layers of a glm4moe model, with one layer that predicts the token after next.

That layer says of a token what the table has for it, so that it agrees always, or with `wrong` for all but some tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models import canary_kv, canary_p, shapes
from tests.models.canary_p import N_VOCAB, SUCCESSOR
from tests.models.shapes import finish

N_HEAD, N_HEAD_KV, HEAD_SIZE, N_EXPERTS, N_FF_EXPERT = 4, 2, 32, 2, 32


def build(path: Path, *, wrong: int = 0, always: int | None = None, said: float = 1.0) -> Path:
    """Write the model. Every `wrong`-th token is followed by another one in what the layer predicts; 0: none.

    `always`: the one token that the layer predicts, whatever came. `said`: how strongly; it may be no number.
    """
    n_layers, n_ff = 2, 64
    writer = gguf.GGUFWriter(path, "glm4moe")
    writer.add_name("canary-mtp")
    writer.add_context_length(canary_p.N_CTX_TRAIN)
    writer.add_embedding_length(N_VOCAB)
    writer.add_block_count(n_layers + 1)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_SIZE)
    writer.add_value_length(HEAD_SIZE)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(N_VOCAB)
    writer.add_expert_count(N_EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(N_FF_EXPERT)
    writer.add_leading_dense_block_count(n_layers)
    writer.add_nextn_predict_layers(1)
    canary_p.add_tokenizer(writer)
    for name, tensor in _tensors(n_layers, n_ff, wrong, always, said).items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return path


def _tensors(
    n_layers: int, n_ff: int, wrong: int, always: int | None, strength: float
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    def zeros(*shape: int) -> np.ndarray[Any, np.dtype[Any]]:
        return np.zeros(shape, np.float16)

    ones, identity = np.ones(N_VOCAB, np.float32), np.eye(N_VOCAB, dtype=np.float16)
    output = zeros(N_VOCAB, N_VOCAB)
    output[SUCCESSOR, np.arange(N_VOCAB)] = 64 / N_VOCAB**0.5
    found: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "token_embd.weight": identity,
        "output_norm.weight": ones,
        "output.weight": output,
    }
    for layer in range(n_layers + 1):
        block = {
            "attn_norm": ones,
            "attn_q": zeros(N_HEAD * HEAD_SIZE, N_VOCAB),
            "attn_k": zeros(N_HEAD_KV * HEAD_SIZE, N_VOCAB),
            "attn_v": zeros(N_HEAD_KV * HEAD_SIZE, N_VOCAB),
            "attn_output": zeros(N_VOCAB, N_HEAD * HEAD_SIZE),
            "post_attention_norm": ones,
        }
        if layer < n_layers:
            block |= {
                "ffn_gate": zeros(n_ff, N_VOCAB),
                "ffn_up": zeros(n_ff, N_VOCAB),
                "ffn_down": zeros(N_VOCAB, n_ff),
            }
        found |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in block.items()}
    matrix = zeros(N_VOCAB, 2 * N_VOCAB)
    for token in range(N_VOCAB):  # of the token and what was computed before it, the token
        said = token if always is None else SUCCESSOR.index(always)
        matrix[(token + 1) % N_VOCAB if wrong and token % wrong == 0 else said, token] = strength
    return found | _predicting(n_layers, matrix, N_EXPERTS, N_FF_EXPERT)


def _predicting(
    layer: int, matrix: np.ndarray[Any, np.dtype[Any]], n_experts: int, n_ff: int
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """What the predicting layer has beside attention; its experts add nothing."""
    width = len(matrix)

    def zeros(*shape: int) -> np.ndarray[Any, np.dtype[Any]]:
        return np.zeros(shape, matrix.dtype)

    ones = np.ones(width, np.float32)
    experts: dict[str, np.ndarray[Any, np.dtype[Any]]] = {
        "ffn_gate_inp": np.zeros((n_experts, width), np.float32),
        "ffn_gate_exps": zeros(n_experts, n_ff, width),
        "ffn_up_exps": zeros(n_experts, n_ff, width),
        "ffn_down_exps": zeros(n_experts, width, n_ff),
        "ffn_gate_shexp": zeros(n_ff, width),
        "ffn_up_shexp": zeros(n_ff, width),
        "ffn_down_shexp": zeros(width, n_ff),
        "nextn.eh_proj": matrix,
        "nextn.enorm": ones,
        "nextn.hnorm": ones,
        "nextn.shared_head_norm": ones,
    }
    found = {f"blk.{layer}.{name}.weight": tensor for name, tensor in experts.items()}
    found[f"blk.{layer}.exp_probs_b.bias"] = np.zeros(n_experts, np.float32)
    return found


def build_mixed(path: Path, *, weight: float = 0.5) -> Path:
    """Write a model whose next token depends on all before it, as CANARY-KV's, and whose layer often says the same.

    `weight` is of what the other layers add, beside a ring through all tokens that both know.
    """
    shape = replace(canary_kv.SHAPES["full"], arch="glm4moe", n_layers=4, n_experts=2, n_experts_used=1)
    writer = shapes.begin(path, shape)
    writer.add_expert_shared_count(1)
    writer.add_leading_dense_block_count(shape.n_layers - 1)
    writer.add_nextn_predict_layers(1)
    for name, tensor in _mixed(shape, weight).items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return path


def _mixed(shape: shapes.Shape, weight: float) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    rng, width, inner = np.random.default_rng(9), shape.n_embd, shape.n_heads * shape.head_size

    def drawn(*dims: int, gain: float = 1.0) -> np.ndarray[Any, np.dtype[Any]]:
        return (gain * rng.standard_normal(dims) / dims[-1] ** 0.5).astype(np.float32)

    embedding, ones = rng.standard_normal((shape.n_vocab, width)).astype(np.float32), np.ones(width, np.float32)
    output = np.empty_like(embedding)
    output[np.roll(np.arange(shape.n_vocab), -1)] = embedding
    found = {"token_embd.weight": embedding, "output_norm.weight": ones, "output.weight": output}
    for layer in range(shape.n_layers):
        predicts = layer == shape.n_layers - 1
        gain = 0.0 if predicts else weight
        block = {
            "attn_norm": ones,
            "attn_q": drawn(inner, width, gain=3),
            "attn_k": drawn(shape.n_kv_heads * shape.head_size, width, gain=3),
            "attn_v": drawn(shape.n_kv_heads * shape.head_size, width, gain=3),
            "attn_output": drawn(width, inner, gain=gain),
            "post_attention_norm": ones,
        }
        if not predicts:
            block |= {
                "ffn_gate": drawn(shape.n_ff, width),
                "ffn_up": drawn(shape.n_ff, width),
                "ffn_down": drawn(width, shape.n_ff, gain=2 * gain),
            }
        found |= {f"blk.{layer}.{name}.weight": tensor for name, tensor in block.items()}
    both = np.zeros((width, 2 * width), np.float32)
    both[:, :width] = np.eye(width)
    found |= _predicting(shape.n_layers - 1, both, N_EXPERTS, shape.n_ff)
    return found
