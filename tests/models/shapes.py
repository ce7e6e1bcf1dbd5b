"""Tiny GGUF models of many shapes: only their sizes matter, so that predictions can be held against llama.cpp's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.models.bytebpe import byte_spelling


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder. Rows are multiples of 32, so that every cache type is possible."""

    arch: str = "llama"
    n_layers: int = 4
    n_embd: int = 128
    n_heads: int = 4
    n_kv_heads: int = 2
    head_size: int = 32
    n_ff: int = 256
    n_vocab: int = 512
    tied: bool = False
    n_experts: int = 0
    n_experts_used: int = 2
    window: int = 0
    attends: tuple[bool, ...] = ()
    """Which layers have attention; empty: all."""
    kind: str = "F16"


LLAMA = Shape()
SHAPES: dict[str, Shape] = {
    "gqa": LLAMA,
    "mha": replace(LLAMA, n_kv_heads=4),
    "wide": replace(LLAMA, n_layers=2, n_embd=1024, n_heads=16, n_kv_heads=4, head_size=64, n_ff=2816),
    "tied": replace(LLAMA, tied=True),
    "vocabulary": replace(LLAMA, n_vocab=128_256, tied=True),
    "f32": replace(LLAMA, kind="F32"),
    "q8_0": replace(LLAMA, kind="Q8_0"),
    "q4_0": replace(LLAMA, kind="Q4_0", n_embd=512, n_heads=8, head_size=64, n_ff=1024),
    "mixtral": replace(LLAMA, n_experts=8),
    "qwen2": replace(LLAMA, arch="qwen2", tied=True),
    "qwen3": replace(LLAMA, arch="qwen3", head_size=64),
    "qwen3moe": replace(LLAMA, arch="qwen3moe", n_experts=16, n_experts_used=4),
    "gemma2": replace(LLAMA, arch="gemma2", tied=True, window=1024, n_layers=6),
    "gemma3": replace(LLAMA, arch="gemma3", tied=True, window=512, n_layers=8, head_size=64),
    "gemma3-1b": Shape("gemma3", 6, n_embd=1152, n_kv_heads=1, head_size=256, n_ff=2304, tied=True, window=512),
}


def build(path: Path, shape: Shape) -> Path:
    """Write a model of that shape."""
    writer = begin(path, shape)
    for name, dims in tensors(shape).items():
        plain = len(dims) == 1 or name.endswith(("norm.weight", "gate_inp.weight"))
        _add(writer, name, dims, "F32" if plain else shape.kind)
    finish(writer)
    return path


def begin(path: Path, shape: Shape) -> gguf.GGUFWriter:
    """A file with everything but tensors."""
    writer = gguf.GGUFWriter(path, shape.arch)
    _metadata(writer, shape)
    _tokenizer(writer, shape.n_vocab)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    """Write it out."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, dims: tuple[int, ...], kind: str) -> None:
    if kind in ("F32", "F16"):
        writer.add_tensor(name, np.zeros(dims, np.float32 if kind == "F32" else np.float16))
        return
    quantised = gguf.quants.quantize(np.zeros(dims, np.float32), gguf.GGMLQuantizationType[kind])
    writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType[kind])


def _metadata(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv([shape.n_kv_heads * attends for attends in shape.attends] or shape.n_kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(shape.n_vocab)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.n_experts:
        writer.add_expert_count(shape.n_experts)
        writer.add_expert_used_count(shape.n_experts_used)
        writer.add_expert_feed_forward_length(shape.n_ff)


def _tokenizer(writer: gguf.GGUFWriter, n_vocab: int) -> None:
    letters = byte_spelling()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters, *(f"word{i}" for i in range(n_vocab - len(letters)))])
    writer.add_token_types([gguf.TokenType.NORMAL] * n_vocab)
    writer.add_token_merges([f"{letters[65]} {letters[66]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor, `(rows, columns)` as numpy has them."""
    embd, kv_rows, q_rows = shape.n_embd, shape.n_kv_heads * shape.head_size, shape.n_heads * shape.head_size
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (shape.n_vocab, embd), "output_norm.weight": (embd,)}
    if not shape.tied:
        found["output.weight"] = (shape.n_vocab, embd)
    for i in range(shape.n_layers):
        block: dict[str, Any] = {
            "attn_norm": (embd,),
            "attn_q": (q_rows, embd),
            "attn_k": (kv_rows, embd),
            "attn_v": (kv_rows, embd),
            "attn_output": (embd, q_rows),
            "ffn_norm": (embd,),
            **_feed_forward(shape),
        }
        if shape.arch in ("qwen3", "qwen3moe", "gemma3"):
            block |= {"attn_q_norm": (shape.head_size,), "attn_k_norm": (shape.head_size,)}
        if shape.arch in ("gemma2", "gemma3"):
            block |= {"post_attention_norm": (embd,), "post_ffw_norm": (embd,)}
        found |= {f"blk.{i}.{name}.weight": dims for name, dims in block.items()}
        if shape.arch == "qwen2":
            found |= {f"blk.{i}.attn_{n}.bias": (rows,) for n, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows))}
    return found


def _feed_forward(shape: Shape) -> dict[str, tuple[int, ...]]:
    embd, ff, experts = shape.n_embd, shape.n_ff, shape.n_experts
    if not experts:
        return {"ffn_gate": (ff, embd), "ffn_up": (ff, embd), "ffn_down": (embd, ff)}
    return {
        "ffn_gate_inp": (experts, embd),
        "ffn_gate_exps": (experts, ff, embd),
        "ffn_up_exps": (experts, ff, embd),
        "ffn_down_exps": (experts, embd, ff),
    }
