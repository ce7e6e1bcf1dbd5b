"""What a folder that draws takes, computed from its headers: weights, and the largest activations of either network.

Weights are exact: each value has the type that is computed in, or is packed. Activations are those of one forward pass
of the U-Net or transformer, each image with and without its prompt, or of the decoder for one image, whichever is more.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from backends.diffusion.joint import CLIP_TOKENS, transformer_values
from backends.diffusion.kind import TILE
from backends.diffusion.precision import is_packed, loaded_bytes
from backends.files import adapters
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
UPLOAD_BYTES: Final = 208 << 20
"""One upload while it is read: a file of 50 MiB, 4096 x 4096 pixels of it, and the same decoded once more with what is
transparent. 201 MiB live at once (`tests/draw/upload_memory.py`)."""
_FEED_FORWARD: Final = 21
"""Maps of a level's width while a transformer's feed-forward layer multiplies: eight of the layer's output, four of its
gate's activation, four of their product, and five that wait: what the block adds to, twice the stream, its norm and
what attention gave. diffusers' `BasicTransformerBlock.forward` and `GEGLU.forward`."""
_SLICED: Final = 8
"""The same where that layer computes in slices: five maps that wait, its output, an eighth of the sixteen others."""
_BIASES: Final = "relative_attention_bias.weight"
"""`(buckets, heads)`."""
_TEXT_MAPS: Final = 8
"""Maps of a text encoder's widest layer."""
_LAYOUTS: Final[Mapping[Device, float]] = MappingProxyType({"cpu": 1.25, "cuda": 1.0})
"""What a decoder takes beside what lives: oneDNN copies a convolution's input into a layout of its own. Measured as
1.25 times what lives and 1 to 5 MiB, in Stable Diffusion's width and half of it, of 256 to 768 pixels a side."""
LAYOUT_BYTES: Final[Mapping[Device, int]] = MappingProxyType({"cpu": 5 << 20, "cuda": 0})
"""These MiB."""
_COLOURS: Final = 3
_PIXEL_BYTES: Final = _COLOURS * (4 + 1 + 1 + 1) + 2
"""Of a pixel: as numbers, as bytes, as a file, and of a source as bytes, as what may change, and as latents."""


def predict(header: DrawHeader, plan: DrawPlan) -> Footprint:
    """What a plan takes of either memory."""
    runtime = RUNTIME_BYTES[plan.device]
    held, waiting = weight_bytes(header, plan), waiting_parts(header, plan)
    waits = sum(held[part] for part in waiting)
    weights, compute = sum(held.values()) - waits, compute_bytes(header, plan, rows_at_once(plan), header.largest)
    images, further = image_bytes(header, plan), _adapter_bytes(header, plan)
    if plan.device == "cpu":
        weights += waits
        return Footprint(host=Parts(weights, compute=compute + images, runtime=runtime.host, further=further))
    return Footprint(
        Parts(weights, compute=compute, runtime=runtime.device, further=further),
        Parts(waits, compute=images, runtime=runtime.host),
    )


def image_bytes(header: DrawHeader, plan: DrawPlan) -> int:
    """Host memory of all images on their way, and of one upload while it is read."""
    return plan.parallel * header.largest_pixels * _PIXEL_BYTES + UPLOAD_BYTES


def _adapter_bytes(header: DrawHeader, plan: DrawPlan) -> dict[str, int]:
    """Of the adapters that are served, which all are where the model is."""
    n_values = sum(adapter.n_values for adapter in adapters.served(header.adapters))
    return {adapters.KEY: n_values * value_bytes(plan.device)} if n_values else {}


def value_bytes(device: Device) -> int:
    """A processor computes in float32, a card in float16, or for transformers in bfloat16."""
    return 2 if device == "cuda" else 4


def weight_bytes(header: DrawHeader, plan: DrawPlan) -> dict[str, int]:
    """Of each network, by its folder; the autoencoder may be wider than the others."""
    found: dict[str, int] = {}
    for tensor in header.tensors:
        part = tensor.name.partition(".")[0]
        size = decoder_value_bytes(header, plan.device) if part == "vae" else value_bytes(plan.device)
        found[part] = found.get(part, 0) + loaded_bytes(header, tensor, plan.quantization, size)
    return found


def waiting_parts(header: DrawHeader, plan: DrawPlan) -> list[str]:
    """Folders of the networks that wait in host memory."""
    text, parts = list(header.text_encoders), [*header.text_encoders, "vae"]
    return {"none": [], "text": text, "parts": parts, "all": [*parts, header.family.denoiser]}[plan.offload]


def rows_at_once(plan: DrawPlan) -> int:
    """Of one forward pass: with and without the prompt, on a card of all images."""
    return 2 * plan.parallel if plan.device == "cuda" else 2


def decoder_value_bytes(header: DrawHeader, device: Device) -> int:
    """Some autoencoders give no numbers in float16; their folders say so. bfloat16 has float32's range."""
    upcast = header.vae.get("force_upcast") is True and not header.family.flow
    return 4 if upcast else value_bytes(device)


def compute_bytes(header: DrawHeader, plan: DrawPlan, n_rows: int, size: tuple[int, int]) -> int:
    """Of `n_rows` of one size in pixels: the largest of a prompt that is read, a step and what follows the last one.

    Each with the weights that have come for it.
    """
    if header.family.denoiser == "transformer":
        values = transformer_values(header, n_rows, size, is_half=plan.device == "cuda")
    else:
        values = unet_values(header, n_rows, size, sliced=plan.sliced)
    waiting = waiting_parts(header, plan)
    held = {part: n_bytes if part in waiting else 0 for part, n_bytes in weight_bytes(header, plan).items()}
    step = (values + _unpacked_values(header, plan, header.family.denoiser)) * value_bytes(plan.device)
    decoded = decoder_values(header, size, tiled=plan.tiled) * decoder_value_bytes(header, plan.device)
    shown = held["vae"] + int(decoded * _LAYOUTS[plan.device]) + LAYOUT_BYTES[plan.device]
    read = [
        held[part] + (text_values(header, part) + _unpacked_values(header, plan, part)) * value_bytes(plan.device)
        for part in header.text_encoders
    ]
    return max(step + held[header.family.denoiser], shown, *read)


def _unpacked_values(header: DrawHeader, plan: DrawPlan, part: str) -> int:
    """Of the largest packed matrix of a network, which is unpacked for its product."""
    if plan.quantization == "none":
        return 0
    packed = (one.n_elements for one in header.tensors if one.name.startswith(f"{part}.") and is_packed(header, one))
    return max(packed, default=0)


def text_values(header: DrawHeader, part: str) -> int:
    """At most, of a prompt's tokens in the widest layer of a text encoder, and of T5's biases for each pair of them."""
    layers = [one for one in header.tensors if one.name.startswith(f"{part}.") and len(one.shape) == 2]
    inner = [one.shape[0] for one in layers if "embed" not in one.name and not one.name.endswith("shared.weight")]
    n_heads = max((one.shape[1] for one in layers if one.name.endswith(_BIASES)), default=0)
    n_tokens = max(header.most_tokens, CLIP_TOKENS)
    return _TEXT_MAPS * max(inner, default=0) * n_tokens + n_heads * n_tokens**2


def decoder_values(header: DrawHeader, size: tuple[int, int], *, tiled: bool = False) -> int:
    """Numbers that live at once while one image is decoded: in the last block, where the one before enters.

    There live a block's input, its norm's output and its activation's, or the input and four narrow maps while the
    shortcut is added: diffusers' `ResnetBlock2D.forward`. Of an image in tiles, those of one tile, and all tiles.
    """
    if tiled and max(size) > TILE:
        waiting = _COLOURS * size[0] * size[1]
        return waiting + decoder_values(header, (min(TILE, size[0]), min(TILE, size[1])))
    widths = header.vae["block_out_channels"]
    narrow, wide = int(widths[0]), int(widths[min(1, len(widths) - 1)])
    return size[0] * size[1] * max(3 * wide, wide + 4 * narrow)


def unet_values(header: DrawHeader, n_rows: int, size: tuple[int, int], *, sliced: bool = False) -> int:
    """Numbers that live at once on the way up, in the level that takes most: there the skips of all levels above wait.

    Beside them live what came from the level below, and of this level either a transformer's feed-forward
    (`_FEED_FORWARD`) or a block's wide input, its norm's output and its activation's.
    """
    widths, n_layers = [int(width) for width in header.denoiser["block_out_channels"]], header.layers_per_block
    cells = (size[0] // header.scale) * (size[1] // header.scale)
    most, skips = 0, widths[0] * cells
    for level, width in enumerate(widths):
        here, below = cells // 4**level, widths[min(level + 1, len(widths) - 1)]
        skips += n_layers * width * here
        block = 3 * (below + width)
        if _attends(header, level):
            block = max(block, _SLICED * width) if sliced else _FEED_FORWARD * width
        most = max(most, skips + here * (below + block))
        skips += width * here // 4
    return n_rows * most


def _attends(header: DrawHeader, level: int) -> bool:
    kinds = header.denoiser.get("down_block_types")
    return not isinstance(kinds, list) or level >= len(kinds) or "Attn" in str(kinds[level])
