"""CANARY-KV: random weights whose every next token depends on all tokens before it, so that any mix-up of cells shows.

Four kinds, by what their memory can do: `full` attention can be cut anywhere, `window` (a sliding window in most
layers) forgets what it cannot be cut back to, `state` (recurrent) cannot be cut at all, nor can `hybrid` (both).

No row is a multiple of four long. llama.cpp then has one way to multiply, however many rows there are, and with cells
in `EXACT_CELLS` one way to attend. So logits do not depend on who else is in a batch, to the last bit.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backends.messages import KvType
from demo.names import hf_name
from tests.models import shapes
from tests.models.bytebpe import byte_spelling

Kind = Literal["full", "window", "state", "hybrid", "gemma2", "gpt-oss"]
KINDS: tuple[Kind, ...] = ("full", "window", "state", "hybrid")
"""The others are windows again: in every second layer, with capped scores, or with sinks and experts."""
N_VOCAB = 512
WINDOW = 48
EXACT_CELLS: KvType = "bf16"
_LLAMA = shapes.Shape(n_layers=3, n_embd=102, n_heads=3, n_kv_heads=1, head_size=34, n_ff=162, kind="F32")
_ODD = replace(_LLAMA, n_embd=99, head_size=33)
SHAPES: dict[Kind, shapes.Shape] = {
    "full": _LLAMA,
    "window": replace(_LLAMA, arch="gemma3", n_layers=4, window=WINDOW),
    "state": replace(_ODD, arch="mamba"),
    "hybrid": replace(_ODD, arch="jamba", n_layers=4, attends=(False, True, False, True)),
    "gemma2": replace(_LLAMA, arch="gemma2", n_layers=4, window=WINDOW, tied=True),
    "gpt-oss": replace(_LLAMA, arch="gpt-oss", n_layers=4, window=WINDOW, n_experts=5),
}
_INNER, _STATE, _RANK, _KERNEL = 2 * _ODD.n_embd, 16, 6, 4


def build(path: Path, kind: Kind, *, noise: float = 0.0) -> Path:
    """Write the model (1 MB). `noise`: one beside it whose matrices differ by so much, so that it mostly agrees."""
    shape = SHAPES[kind]
    writer = shapes.begin(path, shape)
    if kind == "window":
        writer.add_array("gemma3.attention.sliding_window_pattern", [True, True, False, True])
    if kind in ("state", "hybrid"):
        writer.add_ssm_conv_kernel(_KERNEL)
        writer.add_ssm_inner_size(_INNER)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_RANK)
    rng, other = np.random.default_rng(5), np.random.default_rng(6)
    for name, dims in _tensors(kind, shape).items():
        values = _values(rng, name, dims)
        noisy = 1 + noise * other.standard_normal(dims).astype(np.float32)
        writer.add_tensor(name, values * noisy if noise else values)
    shapes.finish(writer)
    return path


def build_folder(folder: Path, *, noise: float = 0.0) -> Path:
    """A model of the `full` kind's shape as a Hugging Face folder, with the same matrices read as transformers does."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    shape, letters = SHAPES["full"], byte_spelling()
    words = [*letters, *(f"word{i}" for i in range(shape.n_vocab - len(letters)))]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=words[0], eos_token=words[1]).save_pretrained(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": shape.n_vocab,
        "hidden_size": shape.n_embd,
        "intermediate_size": shape.n_ff,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_size,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    rng, other = np.random.default_rng(5), np.random.default_rng(6)
    found = {hf_name(name): _values(rng, name, dims) for name, dims in shapes.tensors(shape).items()}
    if noise:
        found = {name: v * (1 + noise * other.standard_normal(v.shape).astype(np.float32)) for name, v in found.items()}
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prompt(seed: int, n_tokens: int) -> list[int]:
    """A prompt like no other."""
    return np.random.default_rng([17, seed]).integers(2, N_VOCAB, n_tokens).tolist()


def _values(rng: np.random.Generator, name: str, dims: tuple[int, ...]) -> NDArray[np.float32]:
    if name.endswith(("norm.weight", "ssm_d")):
        return np.ones(dims, np.float32)
    if name.endswith("ssm_a"):
        return -rng.uniform(0.2, 1.5, dims).astype(np.float32)
    gain = 6.0 if name == "output.weight" else 1.0 if name == "token_embd.weight" else 1.5 / dims[-1] ** 0.5
    return (rng.standard_normal(dims) * gain).astype(np.float32)


def _tensors(kind: Kind, shape: shapes.Shape) -> dict[str, tuple[int, ...]]:
    found = shapes.tensors(shape)
    for i in range(shape.n_layers):
        if kind == "gpt-oss":
            found |= {f"blk.{i}.{name}": dims for name, dims in _sinks_and_biases(shape).items()}
            del found[f"blk.{i}.ffn_norm.weight"]
        if kind == "state":
            found = {name: dims for name, dims in found.items() if not name.startswith(f"blk.{i}.")}
        if kind == "state" or (kind == "hybrid" and not shape.attends[i]):
            found = {name: dims for name, dims in found.items() if not name.startswith(f"blk.{i}.attn_")}
            found |= {f"blk.{i}.{name}": dims for name, dims in _running_state(kind, shape.n_embd).items()}
    return found


def _running_state(kind: Kind, embd: int) -> dict[str, tuple[int, ...]]:
    block: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (embd,),
        "ssm_in.weight": (2 * _INNER, embd),
        "ssm_conv1d.weight": (_INNER, _KERNEL),
        "ssm_conv1d.bias": (_INNER,),
        "ssm_x.weight": (_RANK + 2 * _STATE, _INNER),
        "ssm_dt.weight": (_INNER, _RANK),
        "ssm_dt.bias": (_INNER,),
        "ssm_a": (_INNER, _STATE),
        "ssm_d": (_INNER,),
        "ssm_out.weight": (embd, _INNER),
    }
    if kind == "hybrid":
        block |= {"ssm_dt_norm.weight": (_RANK,), "ssm_b_norm.weight": (_STATE,), "ssm_c_norm.weight": (_STATE,)}
    return block


def _sinks_and_biases(shape: shapes.Shape) -> dict[str, tuple[int, ...]]:
    embd, experts, kv_rows = shape.n_embd, shape.n_experts, shape.n_kv_heads * shape.head_size
    return {
        "post_attention_norm.weight": (embd,),
        "attn_sinks.weight": (shape.n_heads,),
        "attn_q.bias": (shape.n_heads * shape.head_size,),
        "attn_k.bias": (kv_rows,),
        "attn_v.bias": (kv_rows,),
        "attn_output.bias": (embd,),
        "ffn_gate_inp.bias": (experts,),
        "ffn_gate_exps.bias": (experts, shape.n_ff),
        "ffn_up_exps.bias": (experts, shape.n_ff),
        "ffn_down_exps.bias": (experts, embd),
    }
