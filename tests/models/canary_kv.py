"""CANARY-KV: random weights whose every next token depends on all tokens before it, so that any mix-up of cells shows.

Three kinds, by what their memory can do: `full` attention can be cut anywhere, `window` (a sliding window in most
layers) forgets what it cannot be cut back to, `state` (recurrent) cannot be cut at all.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tests.models import shapes

Kind = Literal["full", "window", "state"]
KINDS: tuple[Kind, ...] = ("full", "window", "state")
N_VOCAB = 512
WINDOW = 48
_LLAMA = shapes.Shape(n_layers=3, n_embd=96, n_heads=3, n_kv_heads=1, head_size=32, n_ff=160, kind="F32")
SHAPES: dict[Kind, shapes.Shape] = {
    "full": _LLAMA,
    "window": replace(_LLAMA, arch="gemma3", n_layers=4, window=WINDOW),
    "state": replace(_LLAMA, arch="mamba"),
}
_INNER, _STATE, _RANK, _KERNEL = 192, 16, 6, 4


def build(path: Path, kind: Kind) -> Path:
    """Write the model (1 MB)."""
    shape = SHAPES[kind]
    writer = shapes.begin(path, shape)
    if kind == "window":
        writer.add_array("gemma3.attention.sliding_window_pattern", [True, True, False, True])
    if kind == "state":
        writer.add_ssm_conv_kernel(_KERNEL)
        writer.add_ssm_inner_size(_INNER)
        writer.add_ssm_state_size(_STATE)
        writer.add_ssm_time_step_rank(_RANK)
    rng = np.random.default_rng(5)
    for name, dims in (_mamba(shape) if kind == "state" else shapes.tensors(shape)).items():
        writer.add_tensor(name, _values(rng, name, dims))
    shapes.finish(writer)
    return path


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


def _mamba(shape: shapes.Shape) -> dict[str, tuple[int, ...]]:
    embd = shape.n_embd
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.n_vocab, embd),
        "output_norm.weight": (embd,),
        "output.weight": (shape.n_vocab, embd),
    }
    for i in range(shape.n_layers):
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
        found |= {f"blk.{i}.{name}": dims for name, dims in block.items()}
    return found
