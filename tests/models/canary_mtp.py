"""CANARY-MTP: CANARY-P's table behind the layers of a glm4moe model, with one layer that predicts the token after next.

That layer says of a token what the table has for it, so that it agrees always, or with `wrong` for all but some tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models import canary_p
from tests.models.canary_p import N_VOCAB, SUCCESSOR
from tests.models.shapes import finish

N_HEAD, N_HEAD_KV, HEAD_SIZE, N_EXPERTS, N_FF_EXPERT = 4, 2, 32, 2, 32


def build(path: Path, *, n_layers: int = 2, n_ff: int = 64, wrong: int = 0, kind: type[Any] = np.float16) -> Path:
    """Write the model. Every `wrong`-th token is followed by another one in what the layer predicts; 0: none."""
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
    for name, tensor in _tensors(n_layers, n_ff, wrong, kind).items():
        writer.add_tensor(name, tensor)
    finish(writer)
    return path


def _tensors(n_layers: int, n_ff: int, wrong: int, kind: type[Any]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    def zeros(*shape: int) -> np.ndarray[Any, np.dtype[Any]]:
        return np.zeros(shape, kind)

    ones, identity = np.ones(N_VOCAB, np.float32), np.eye(N_VOCAB, dtype=kind)
    output = zeros(N_VOCAB, N_VOCAB)
    output[SUCCESSOR, np.arange(N_VOCAB)] = 64 / N_VOCAB**0.5
    found = {"token_embd.weight": identity, "output_norm.weight": ones, "output.weight": output}
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
    last = f"blk.{n_layers}"
    matrix = zeros(N_VOCAB, 2 * N_VOCAB)
    for token in range(N_VOCAB):  # of the token and what was computed before it, the token
        matrix[(token + 1) % N_VOCAB if wrong and token % wrong == 0 else token, token] = 1
    experts = {
        "ffn_gate_inp": np.zeros((N_EXPERTS, N_VOCAB), np.float32),
        "ffn_gate_exps": zeros(N_EXPERTS, N_FF_EXPERT, N_VOCAB),
        "ffn_up_exps": zeros(N_EXPERTS, N_FF_EXPERT, N_VOCAB),
        "ffn_down_exps": zeros(N_EXPERTS, N_VOCAB, N_FF_EXPERT),
        "ffn_gate_shexp": zeros(N_FF_EXPERT, N_VOCAB),
        "ffn_up_shexp": zeros(N_FF_EXPERT, N_VOCAB),
        "ffn_down_shexp": zeros(N_VOCAB, N_FF_EXPERT),
        "nextn.eh_proj": matrix,
        "nextn.enorm": ones,
        "nextn.hnorm": ones,
        "nextn.shared_head_norm": ones,
    }
    found |= {f"{last}.{name}.weight": tensor for name, tensor in experts.items()}
    found[f"{last}.exp_probs_b.bias"] = np.zeros(N_EXPERTS, np.float32)
    return found
