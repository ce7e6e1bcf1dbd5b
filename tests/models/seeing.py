"""Small GGUF models with eyes, of random weights: what they say means nothing, and is the same every time.

`mrope`: rows of an image share positions (Qwen2-VL). `whole`: they see each other (Gemma 3). `plain`: neither (LLaVA).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.models.shapes import Shape, begin, finish, tensors

Sight = Literal["plain", "mrope", "whole"]
SIGHTS: tuple[Sight, ...] = ("plain", "mrope", "whole")
N_VOCAB = 320
_WIDTH = 64
_TOWER = 64
_INNER = 128
_ARCH: dict[Sight, str] = {"plain": "llama", "mrope": "qwen2vl", "whole": "gemma3"}
_TYPE: dict[Sight, str] = {"plain": "mlp", "mrope": "qwen2vl_merger", "whole": "gemma3"}
_SIDE: dict[Sight, int] = {"plain": 48, "mrope": 560, "whole": 64}
_PATCH: dict[Sight, int] = {"plain": 8, "mrope": 14, "whole": 8}


def build(folder: Path, sight: Sight, *, name: str = "seer", class_row: bool = False) -> Path:
    """Write a model and its projector; the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    language(folder / f"{name}-f32.gguf", sight)
    projector(folder / f"mmproj-{name}-f32.gguf", sight, class_row=class_row)
    return folder / f"{name}-f32.gguf"


def language(path: Path, sight: Sight) -> None:
    rng = np.random.default_rng(1)
    window = 64 if sight == "whole" else 0
    layers = 6 if sight == "whole" else 2
    shape = Shape(
        _ARCH[sight],
        layers,
        n_embd=_WIDTH,
        n_heads=2,
        n_kv_heads=1,
        n_ff=128,
        n_vocab=N_VOCAB,
        tied=True,
        window=window,
    )
    writer = begin(path, shape)
    writer.add_chat_template(
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    if sight == "mrope":
        writer.add_rope_dimension_sections([4, 6, 6, 0])
    made = dict(tensors(shape))
    if sight == "mrope":
        for layer in range(layers):
            for part, width in (("q", 64), ("k", 32), ("v", 32)):
                made[f"blk.{layer}.attn_{part}.bias"] = (width,)
    for tensor, dims in made.items():
        is_norm = len(dims) == 1 and tensor.endswith("norm.weight")
        writer.add_tensor(tensor, np.ones(dims, np.float32) if is_norm else _random(rng, *dims))
    finish(writer)


def projector(path: Path, sight: Sight, *, width: int = _WIDTH, class_row: bool = False) -> Path:
    """Write a projector for a model of this width."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_string("clip.projector_type", _TYPE[sight])
    add_eyes(writer, sight, width=width, class_row=class_row)
    finish(writer)
    return path


def add_eyes(writer: gguf.GGUFWriter, sight: Sight, *, width: int = _WIDTH, class_row: bool = False) -> None:
    """What of a projector's file sees."""
    rng = np.random.default_rng(2)
    side, patch = _SIDE[sight], _PATCH[sight]
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.vision.projector_type", _TYPE[sight])
    writer.add_bool("clip.use_gelu", True)
    figures = {
        "embedding_length": _TOWER,
        "feed_forward_length": _INNER,
        "block_count": 2,
        "projection_dim": width,
        "attention.head_count": 2,
        "image_size": side,
        "patch_size": patch,
    }
    for key, value in figures.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)
    for name, array in _tower(rng, sight, (side // patch) ** 2, patch, class_row).items():
        writer.add_tensor(name, array)
    for name, array in _bridge(rng, sight, width).items():
        writer.add_tensor(name, array)


def _tower(
    rng: np.random.Generator, sight: Sight, n_patches: int, patch: int, class_row: bool
) -> dict[str, NDArray[np.float32]]:
    made = {"v.patch_embd.weight": _random(rng, _TOWER, 3, patch, patch)}
    if sight == "mrope":
        made["v.patch_embd.weight.1"] = _random(rng, _TOWER, 3, patch, patch)
    else:
        made["v.patch_embd.bias"] = _random(rng, _TOWER)
        made["v.position_embd.weight"] = _random(rng, n_patches + class_row, _TOWER)
    if class_row:
        made["v.class_embd"] = _random(rng, _TOWER)
    if sight != "plain":
        made |= {"v.post_ln.weight": np.ones(_TOWER, np.float32), "v.post_ln.bias": np.zeros(_TOWER, np.float32)}
    square, up, down = (_TOWER, _TOWER), (_INNER, _TOWER), (_TOWER, _INNER)
    parts = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_out": square, "ffn_up": up, "ffn_down": down}
    for layer in range(2):
        for part, dims in parts.items():
            made[f"v.blk.{layer}.{part}.weight"] = _random(rng, *dims)
            made[f"v.blk.{layer}.{part}.bias"] = _random(rng, dims[0])
        for norm in ("ln1", "ln2"):
            made[f"v.blk.{layer}.{norm}.weight"] = np.ones(_TOWER, np.float32)
            made[f"v.blk.{layer}.{norm}.bias"] = np.zeros(_TOWER, np.float32)
    return made


def _bridge(rng: np.random.Generator, sight: Sight, width: int) -> dict[str, NDArray[np.float32]]:
    if sight == "whole":
        return {
            "mm.input_projection.weight": _random(rng, _TOWER, width),
            "mm.soft_emb_norm.weight": np.ones(_TOWER, np.float32),
        }
    first, inner = (4 * _TOWER, 4 * _TOWER) if sight == "mrope" else (_TOWER, width)
    return {
        "mm.0.weight": _random(rng, inner, first),
        "mm.0.bias": _random(rng, inner),
        "mm.2.weight": _random(rng, width, inner),
        "mm.2.bias": _random(rng, width),
    }


def _random(rng: np.random.Generator, *dims: int) -> NDArray[np.float32]:
    return (rng.standard_normal(dims) * 0.15).astype(np.float32)


def picture(seed: int, *, width: int = 48, height: int = 48, kind: str = "PNG") -> bytes:
    """An image of noise, the same for the same seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()
