"""What trainers call the layers of models that draw, and what diffusers calls them. Pure.

kohya's scripts write underscores for dots. They train XL, Stable Diffusion 3 and Flux as their first publishers wrote
them, with other names: those of XL (`input_blocks.4.1`) follow from diffusers' (`down_blocks.1.attentions.0`) by
counting, those of the others are in `original_names`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from backends.diffusion.original_names import originals
from backends.diffusion.unet_names import ENDS, IN_RESNETS

if TYPE_CHECKING:
    from collections.abc import Collection

_PREFIXES: Final = {
    "unet": ("lora_unet",),
    "transformer": ("lora_transformer",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
}
_OF_T5: Final = ("lora_te3",)
"""Whichever encoder of its model it is."""
_OF_ORIGINALS: Final = "lora_unet"
"""Of transformers, too."""
_WITH_DOTS: Final = "diffusion_model."
"""Before a publisher's names, as ComfyUI writes them."""
_TRANSFORMER: Final = "transformer."
_TEXT_MODEL: Final = "text_model."
"""Behind the name of a text encoder, in some versions of transformers."""
_BLOCK: Final = re.compile(
    r"(down|up)_blocks\.(\d{1,3})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,3})\.(.+)"
)


def plain(layer: str) -> str:
    """A layer's name behind its part's, without what only some versions of transformers write."""
    part, _, inner = layer.partition(".")
    return f"{part}.{inner.removeprefix(_TEXT_MODEL)}" if part.startswith("text_encoder") else layer


def foreign_names(layers: Collection[str], layers_per_block: int) -> dict[str, tuple[str, ...]]:
    """What trainers call layers, and what the base does; `layers` begin with their part.

    Several layers of the base are one to a trainer where the first publisher has them in one matrix, in the order of
    its rows.
    """
    found: dict[str, tuple[str, ...]] = {}
    t5 = {layer.partition(".")[0] for layer in layers if ".SelfAttention." in layer}
    for layer in layers:
        part, _, inner = layer.partition(".")
        names = [inner, _TEXT_MODEL + inner] if part.startswith("text_encoder") else [inner]
        if part == "unet" and (first := first_name(inner, layers_per_block)) is not None:
            names.append(first)
        for prefix in _OF_T5 if part in t5 else _PREFIXES.get(part, ()):
            found.update({f"{prefix}_{name}".replace(".", "_"): (layer,) for name in names})
    inside = {layer.partition(".")[2] for layer in layers if layer.startswith(_TRANSFORMER)}
    for name, ours in originals(inside).items() if inside else ():
        layers_of_it = tuple(_TRANSFORMER + one for one in ours)
        found[f"{_OF_ORIGINALS}_{name}".replace(".", "_")] = found[_WITH_DOTS + name] = layers_of_it
    return found


def first_name(layer: str, layers_per_block: int) -> str | None:
    """What the first publisher of XL calls a layer of the U-Net; None where that has no such layer."""
    for ours, theirs in ENDS.items():
        if layer == ours or layer.startswith(f"{ours}."):
            inner = layer.removeprefix(ours).removeprefix(".")
            return f"{theirs}.{IN_RESNETS.get(inner, inner)}".rstrip(".")
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
    return f"{place}.0.{IN_RESNETS.get(inner, inner)}" if sort == "resnets" else f"{place}.1.{inner}"
