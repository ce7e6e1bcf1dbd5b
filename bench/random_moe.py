"""A mixture of experts with random weights in Q4_K: which experts a token uses is as random as its text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from bench.model import OUT, Shape, describe, is_text
from bench.random_q4 import Tensor, values


@dataclass(frozen=True)
class MoeShape(Shape):
    """The sizes of each expert are `n_ff`."""

    n_layers: int = 12
    n_embd: int = 512
    n_heads: int = 8
    n_heads_kv: int = 4
    n_ff: int = 256
    n_experts: int = 64
    n_used: int = 8


def path(shape: MoeShape = MoeShape()) -> Path:
    """The file, made on the first call."""
    target = OUT / f"random-moe-{shape.n_layers}x{shape.n_embd}x{shape.n_experts}.gguf"
    if not target.exists():
        OUT.mkdir(exist_ok=True)
        part = target.with_suffix(".part")
        write(part, shape)
        part.rename(target)
    return target


def write(target: Path, shape: MoeShape, *, seed: int = 1) -> None:
    """Write the model, of the architecture qwen3moe."""
    writer = gguf.GGUFWriter(target, "qwen3moe")
    chosen = is_text(describe(writer, shape))
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_expert_count(shape.n_experts)
    writer.add_expert_used_count(shape.n_used)
    writer.add_expert_feed_forward_length(shape.n_ff)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    rng = np.random.Generator(np.random.SFC64(seed))

    def matrix(name: str, rows: int, columns: int, *, gain: float = 1.0, n: int = 0) -> None:
        tensor = Tensor(name, rows * max(1, n), columns, Type.Q4_K, gain / columns**0.5)
        data = values(tensor, rng)
        if name == "output":
            data[~chosen] = 0
        shaped = data.reshape(n, rows, -1) if n else data
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(shaped), raw_dtype=Type.Q4_K)

    def ones(name: str, n: int) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(n, np.float32))

    n_embd, kv, branch = shape.n_embd, shape.n_heads_kv * shape.head_size, (2 * shape.n_layers) ** -0.5
    matrix("token_embd", shape.n_vocab, n_embd, gain=n_embd**0.5)
    for layer in range(shape.n_layers):
        name = f"blk.{layer}."
        for norm, n in (("attn_norm", n_embd), ("ffn_norm", n_embd), ("attn_q_norm", shape.head_size)):
            ones(name + norm, n)
        ones(name + "attn_k_norm", shape.head_size)
        matrix(name + "attn_q", n_embd, n_embd)
        matrix(name + "attn_k", kv, n_embd)
        matrix(name + "attn_v", kv, n_embd)
        matrix(name + "attn_output", n_embd, n_embd, gain=branch)
        router = rng.standard_normal((shape.n_experts, n_embd)).astype(np.float32) / math.sqrt(n_embd)
        writer.add_tensor(f"{name}ffn_gate_inp.weight", router)
        matrix(name + "ffn_gate_exps", shape.n_ff, n_embd, n=shape.n_experts)
        matrix(name + "ffn_up_exps", shape.n_ff, n_embd, n=shape.n_experts)
        matrix(name + "ffn_down_exps", n_embd, shape.n_ff, gain=2 * branch, n=shape.n_experts)
    ones("output_norm", n_embd)
    matrix("output", shape.n_vocab, n_embd, gain=2.5)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
