"""Small projectors that hear, of random weights: what a model says of their rows means nothing, and is the same always.

`ultravox` makes 75 rows of every 30 s; `omni` 750 with tokens of words around them, and sees as a `mrope` model does.
Both are Whisper's encoder with a bridge, as llama.cpp's converter writes them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.models import seeing
from tests.models.shapes import finish
from tests.speech.sound import wav

Ear = Literal["ultravox", "omni"]
EARS: tuple[Ear, ...] = ("ultravox", "omni")
ROWS: dict[Ear, int] = {"ultravox": 75, "omni": 750}
"""Of 30 s."""
RATE = 16_000
_TOWER, _INNER, _MELS, _POSITIONS, _STACK = 32, 64, 16, 1500, 20


def build(folder: Path, ear: Ear, *, name: str = "hearer", stack: int = _STACK) -> Path:
    """Write a model and its projector; the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-f32.gguf"
    seeing.language(path, "mrope" if ear == "omni" else "plain")
    projector(folder / f"mmproj-{name}-f32.gguf", ear, stack=stack)
    return path


def projector(path: Path, ear: Ear, *, width: int = 64, stack: int = _STACK) -> Path:
    """Write a projector for a model of this width."""
    rng = np.random.default_rng(3)
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    if ear == "omni":
        seeing.add_eyes(writer, "mrope", width=width)
    writer.add_bool("clip.has_audio_encoder", True)
    writer.add_string("clip.audio.projector_type", "ultravox" if ear == "ultravox" else "qwen2a")
    figures = {
        "embedding_length": _TOWER,
        "feed_forward_length": _INNER,
        "block_count": 1,
        "projection_dim": width,
        "attention.head_count": 2,
        "num_mel_bins": _MELS,
    }
    if ear == "ultravox":
        figures["projector.stack_factor"] = stack
    for key, value in figures.items():
        writer.add_uint32(f"clip.audio.{key}", value)
    writer.add_float32("clip.audio.attention.layer_norm_epsilon", 1e-5)
    for tensor, array in (_tower(rng) | _bridge(rng, ear, width, stack)).items():
        writer.add_tensor(tensor, array)
    finish(writer)
    return path


def _tower(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    made = {
        "a.conv1d.1.weight": _random(rng, _TOWER, _MELS, 3),
        "a.conv1d.1.bias": _random(rng, _TOWER, 1),
        "a.conv1d.2.weight": _random(rng, _TOWER, _TOWER, 3),
        "a.conv1d.2.bias": _random(rng, _TOWER, 1),
        "a.position_embd.weight": _random(rng, _POSITIONS, _TOWER),
        "a.blk.0.ffn_up.weight": _random(rng, _INNER, _TOWER),
        "a.blk.0.ffn_up.bias": _random(rng, _INNER),
        "a.blk.0.ffn_down.weight": _random(rng, _TOWER, _INNER),
        "a.blk.0.ffn_down.bias": _random(rng, _TOWER),
    }
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        made[f"a.blk.0.{part}.weight"] = _random(rng, _TOWER, _TOWER)
        if part != "attn_k":
            made[f"a.blk.0.{part}.bias"] = _random(rng, _TOWER)
    for norm in ("blk.0.ln1", "blk.0.ln2", "post_ln"):
        made[f"a.{norm}.weight"] = np.ones(_TOWER, np.float32)
        made[f"a.{norm}.bias"] = np.zeros(_TOWER, np.float32)
    return made


def _bridge(rng: np.random.Generator, ear: Ear, width: int, stack: int) -> dict[str, NDArray[np.float32]]:
    if ear != "ultravox":
        return {"mm.a.fc.weight": _random(rng, width, _TOWER), "mm.a.fc.bias": _random(rng, width)}
    stacked, inner = stack * _TOWER, 2 * _TOWER
    return {
        "mm.a.norm_pre.weight": np.ones(stacked, np.float32),
        "mm.a.mlp.1.weight": _random(rng, 2 * inner, stacked),
        "mm.a.norm_mid.weight": np.ones(inner, np.float32),
        "mm.a.mlp.2.weight": _random(rng, width, inner),
    }


def _random(rng: np.random.Generator, *dims: int) -> NDArray[np.float32]:
    return (rng.standard_normal(dims) * 0.15).astype(np.float32)


def tone(hertz: float, *, seconds: float = 1.0, rate: int = RATE) -> bytes:
    """A WAV file of one tone."""
    times = np.arange(round(seconds * rate)) / rate
    return wav((0.5 * 32767 * np.sin(2 * math.pi * hertz * times)).astype(np.int16), rate=rate)
