"""A model with a layer that predicts the token after the next one, and is right as often as is asked for.

As in `draft_pair`, what follows a token stands in a table; the layer has the same one, but for some tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np

from bench.draft_pair import LOGIT, TARGET, altered, shuffled
from bench.model import OUT, Shape, describe, is_text

_N_EXPERTS: Final = 2
_N_FF_EXPERT: Final = 256
Tensor = np.ndarray[Any, np.dtype[Any]]


def path(agreement: float) -> Path:
    """The file, made on the first call: layers in 32 bits, so that a step waits for its weights, as on a card."""
    file = OUT / f"predicting-{agreement:g}.gguf"
    if not file.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        part = write(file.with_suffix(".part"), agreement=agreement)
        part.rename(file)
    return file


def write(file: Path, *, agreement: float = 0.8, shape: Shape = TARGET) -> Path:
    """Write a model of that shape and one layer more, which predicts."""
    writer = gguf.GGUFWriter(file, "glm4moe")
    tokens = describe(writer, replace(shape, n_layers=shape.n_layers + 1))
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_expert_count(_N_EXPERTS)
    writer.add_expert_used_count(1)
    writer.add_expert_shared_count(1)
    writer.add_expert_feed_forward_length(_N_FF_EXPERT)
    writer.add_leading_dense_block_count(shape.n_layers)
    writer.add_nextn_predict_layers(1)
    rng, spoken = random.Random(7), np.flatnonzero(is_text(tokens)).tolist()
    following = shuffled(spoken, rng)
    for name, tensor in _tensors(shape, following, altered(following, spoken, 1 - agreement, rng)).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors(shape: Shape, following: dict[int, int], predicted: dict[int, int]) -> dict[str, Tensor]:
    ones, first = np.ones(shape.n_embd, np.float32), next(iter(following))
    output = np.zeros((shape.n_vocab, shape.n_embd), np.float16)
    for token in range(shape.n_vocab):
        output[following.get(token, first), token] = LOGIT / shape.n_embd**0.5
    found: dict[str, Tensor] = {
        "token_embd.weight": np.eye(shape.n_vocab, shape.n_embd, dtype=np.float16),
        "output.weight": output,
        "output_norm.weight": ones,
    }
    for layer in range(shape.n_layers + 1):
        predicts = layer == shape.n_layers
        sizes = _attention(shape) | (_experts(shape) if predicts else _dense(shape))
        block: dict[str, Tensor] = {name: _zeros(dims) for name, dims in sizes.items()}
        block |= {"attn_norm.weight": ones, "post_attention_norm.weight": ones}
        if predicts:
            block |= _predicts(shape, following, predicted)
        found |= {f"blk.{layer}.{name}": tensor for name, tensor in block.items()}
    return found


def _predicts(shape: Shape, following: dict[int, int], predicted: dict[int, int]) -> dict[str, Tensor]:
    """What makes the layer say of a token what is predicted: the one is taken for that which has it behind it."""
    before = {after: token for token, after in following.items()}
    ones = np.ones(shape.n_embd, np.float32)
    matrix = np.zeros((shape.n_embd, 2 * shape.n_embd), np.float16)
    for token, after in predicted.items():
        matrix[before[after], token] = 1
    return {
        "exp_probs_b.bias": np.zeros(_N_EXPERTS, np.float32),
        "nextn.eh_proj.weight": matrix,
        "nextn.enorm.weight": ones,
        "nextn.hnorm.weight": ones,
        "nextn.shared_head_norm.weight": ones,
    }


def _attention(shape: Shape) -> dict[str, tuple[int, ...]]:
    keys = shape.n_heads_kv * shape.head_size
    return {
        "attn_q.weight": (shape.n_embd, shape.n_embd),
        "attn_k.weight": (keys, shape.n_embd),
        "attn_v.weight": (keys, shape.n_embd),
        "attn_output.weight": (shape.n_embd, shape.n_embd),
    }


def _dense(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate.weight": (shape.n_ff, shape.n_embd),
        "ffn_up.weight": (shape.n_ff, shape.n_embd),
        "ffn_down.weight": (shape.n_embd, shape.n_ff),
    }


def _experts(shape: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "ffn_gate_inp.weight": (_N_EXPERTS, shape.n_embd),
        "ffn_gate_exps.weight": (_N_EXPERTS, _N_FF_EXPERT, shape.n_embd),
        "ffn_up_exps.weight": (_N_EXPERTS, _N_FF_EXPERT, shape.n_embd),
        "ffn_down_exps.weight": (_N_EXPERTS, shape.n_embd, _N_FF_EXPERT),
        "ffn_gate_shexp.weight": (_N_FF_EXPERT, shape.n_embd),
        "ffn_up_shexp.weight": (_N_FF_EXPERT, shape.n_embd),
        "ffn_down_shexp.weight": (shape.n_embd, _N_FF_EXPERT),
    }


def _zeros(dims: tuple[int, ...]) -> Tensor:
    return np.zeros(dims, np.float32)
