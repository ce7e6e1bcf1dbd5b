"""What a folder that draws takes, computed from its headers: weights, and the largest activations of either network.

Weights are exact: each value has the type that is computed in. Activations are those of one forward pass of the U-Net,
each image with and without its prompt, or of the decoder for one image, whichever is more.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from backends.plan import Amount, Footprint, Parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.diffusion.header import DrawHeader
    from backends.diffusion.kind import DrawPlan
    from backends.messages import Device

RUNTIME_BYTES: Final[Mapping[Device, Amount]] = MappingProxyType(
    {"cpu": Amount(host=360 * 2**20), "cuda": Amount(device=600 * 2**20, host=1000 * 2**20)}
)
"""Python with PyTorch, transformers and diffusers; on a card the driver's context, cuBLAS and cuDNN."""
_DECODER_COPIES: Final = 4
"""Of the widest feature map at full size: a block's input, its norm, its convolution's output and workspace."""
_BLOCK_COPIES: Final = 5
"""The same of a U-Net's block."""
_FEED_FORWARD: Final = 14
"""Feature maps that an attention block's feed-forward layer holds: two of four widths each, gated, and its ends."""
IMAGE_BYTES: Final = 3 * (4 + 1 + 1)
"""Of a pixel: as numbers, as bytes, and as a file."""


def predict(header: DrawHeader, plan: DrawPlan) -> Footprint:
    """What a plan takes of either memory."""
    runtime, size = RUNTIME_BYTES[plan.device], value_bytes(plan.device)
    weights, compute = weight_bytes(header, plan), compute_bytes(header, rows_at_once(plan), header.largest, size)
    images = plan.parallel * header.largest_pixels * IMAGE_BYTES
    if plan.device == "cpu":
        return Footprint(host=Parts(weights, compute=compute + images, runtime=runtime.host))
    return Footprint(
        Parts(weights, compute=compute, runtime=runtime.device), Parts(compute=images, runtime=runtime.host)
    )


def value_bytes(device: Device) -> int:
    """A processor computes in float32, a card in float16."""
    return 2 if device == "cuda" else 4


def weight_bytes(header: DrawHeader, plan: DrawPlan) -> int:
    """Of all networks."""
    return sum(tensor.n_elements for tensor in header.tensors) * value_bytes(plan.device)


def rows_at_once(plan: DrawPlan) -> int:
    """Of one forward pass: with and without the prompt, on a card of all images."""
    return 2 * plan.parallel if plan.device == "cuda" else 2


def compute_bytes(header: DrawHeader, n_rows: int, size: tuple[int, int], value_size: int) -> int:
    """Of `n_rows` of one size in pixels: the larger of a step and of what follows the last one."""
    return max(_unet_bytes(header, n_rows, size, value_size), _decoder_bytes(header, size, value_size))


def _decoder_bytes(header: DrawHeader, size: tuple[int, int], value_size: int) -> int:
    """One image is decoded at a time; the last block begins with the width of the one before it."""
    widths = header.vae["block_out_channels"]
    return _DECODER_COPIES * size[0] * size[1] * int(max(widths[:2])) * value_size


def _unet_bytes(header: DrawHeader, n_rows: int, size: tuple[int, int], value_size: int) -> int:
    """What skips to the other side, and the block that takes most."""
    widths = header.unet["block_out_channels"]
    cells = (size[0] // header.scale) * (size[1] // header.scale)
    skips = sum((_layers(header) + 1) * width * cells // 4**level for level, width in enumerate(widths))
    blocks = [
        (_FEED_FORWARD if _attends(header, level) else 0, width * cells // 4**level)
        for level, width in enumerate(widths)
    ]
    return n_rows * int(skips + max(max(copies, _BLOCK_COPIES) * values for copies, values in blocks)) * value_size


def _layers(header: DrawHeader) -> int:
    layers = header.unet["layers_per_block"]
    return int(max(layers) if isinstance(layers, list) else layers)


def _attends(header: DrawHeader, level: int) -> bool:
    kinds = header.unet.get("down_block_types")
    return not isinstance(kinds, list) or level >= len(kinds) or "Attn" in str(kinds[level])
