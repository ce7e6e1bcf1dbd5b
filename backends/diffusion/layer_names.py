"""What trainers call the layers of models that draw, and what diffusers calls them. Pure.

kohya's scripts write underscores for dots. They train XL as its first publisher wrote it, with other names
(`input_blocks.4.1`), which follow from diffusers' (`down_blocks.1.attentions.0`) by counting.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_PREFIXES: Final = {"unet": ("lora_unet",), "text_encoder": ("lora_te", "lora_te1"), "text_encoder_2": ("lora_te2",)}
_TEXT_MODEL: Final = "text_model."
"""Behind the name of a text encoder, in some versions of transformers."""
_ENDS: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
_IN_RESNETS: Final = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_BLOCK: Final = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def plain(layer: str) -> str:
    """A layer's name behind its part's, without what only some versions of transformers write."""
    part, _, inner = layer.partition(".")
    return f"{part}.{inner.removeprefix(_TEXT_MODEL)}" if part.startswith("text_encoder") else layer


def flat_names(layers: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """What kohya's scripts call layers, and what the base does; `layers` begin with their part."""
    found = {}
    for layer in layers:
        part, _, inner = layer.partition(".")
        names = [inner, _TEXT_MODEL + inner] if part.startswith("text_encoder") else [inner]
        if part == "unet" and (first := _first_name(inner, layers_per_block)) is not None:
            names.append(first)
        for prefix in _PREFIXES.get(part, ()):
            found.update({f"{prefix}_{name}".replace(".", "_"): layer for name in names})
    return found


def _first_name(layer: str, layers_per_block: int) -> str | None:
    """What the first publisher of XL calls a layer of the U-Net; None where that has no such layer."""
    for ours, theirs in _ENDS.items():
        if layer == ours or layer.startswith(f"{ours}."):
            inner = layer.removeprefix(ours).removeprefix(".")
            return f"{theirs}.{_IN_RESNETS.get(inner, inner)}".rstrip(".")
    match = _BLOCK.fullmatch(layer)
    if match is None:
        return None
    way, block, sort, number, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    per_block = layers_per_block + 1
    if sort == "downsamplers":
        return f"input_blocks.{(block + 1) * per_block}.0.op"
    if sort == "upsamplers":
        return f"output_blocks.{(block + 1) * per_block - 1}.2.{inner}"
    place = (
        f"input_blocks.{1 + block * per_block + number}"
        if way == "down"
        else f"output_blocks.{block * per_block + number}"
    )
    return f"{place}.0.{_IN_RESNETS.get(inner, inner)}" if sort == "resnets" else f"{place}.1.{inner}"
