"""What the first publishers of Stable Diffusion and XL call the tensors of a U-Net, and what diffusers does. Pure.

They count blocks through; diffusers counts those of each level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

ENDS: Final[Mapping[str, str]] = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.resnets.1": "middle_block.2",
}
"""Layers, and modules with layers, that are not counted: theirs by diffusers'."""
IN_RESNETS: Final[Mapping[str, str]] = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
"""The same of what is inside a residual block."""
_THEIRS: Final = {theirs: ours for ours, theirs in ENDS.items()}
_INSIDE: Final = {theirs: ours for ours, theirs in IN_RESNETS.items()}
_COUNTED: Final = re.compile(r"(input|output)_blocks\.(\d{1,3})\.(\d)\.(.+)\.(weight|bias)")
_KIND: Final = re.compile(r"(.+)\.(weight|bias)")


def unet_name(name: str, layers_per_block: int) -> tuple[str, ...]:
    """diffusers' name of a tensor; none where it has no such one."""
    kind = _KIND.fullmatch(name)
    if kind is None:
        return ()
    for theirs, ours in _THEIRS.items():
        if kind[1] == theirs or kind[1].startswith(f"{theirs}."):
            inner = kind[1].removeprefix(theirs).removeprefix(".")
            return (".".join(word for word in (ours, _INSIDE.get(inner, inner), kind[2]) if word),)
    counted = _COUNTED.fullmatch(name)
    if counted is None:
        return ()
    way, place, inner = counted[1], int(counted[3]), counted[4]
    module = _down if way == "input" else _up
    found = module(int(counted[2]), place, layers_per_block, inner=inner)
    return (f"{found}.{counted[5]}",)


def _down(number: int, place: int, layers_per_block: int, *, inner: str) -> str:
    block, layer = divmod(number - 1, layers_per_block + 1)
    if inner == "op":
        return f"down_blocks.{block}.downsamplers.0.conv"
    return f"down_blocks.{block}.{_module(place, layer, inner)}"


def _up(number: int, place: int, layers_per_block: int, *, inner: str) -> str:
    block, layer = divmod(number, layers_per_block + 1)
    if inner == "conv":
        return f"up_blocks.{block}.upsamplers.0.conv"
    return f"up_blocks.{block}.{_module(place, layer, inner)}"


def _module(place: int, layer: int, inner: str) -> str:
    return f"resnets.{layer}.{_INSIDE.get(inner, inner)}" if place == 0 else f"attentions.{layer}.{inner}"
