"""The configurations of a folder's networks: their sizes, and whether they fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from backends.backend import HeaderError
from backends.diffusion.families import ENCODER_CLASSES
from backends.diffusion.kind import MAX_SIDE, SMALLEST_SIDE
from backends.files import foreign, model_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.diffusion.families import Encoder, Family

_MOST: Final = 1_000_000
_SIZES: Final[Mapping[str, tuple[str, ...]]] = {
    "unet": ("in_channels", "out_channels", "sample_size", "layers_per_block"),
    "vae": ("in_channels", "out_channels", "latent_channels", "layers_per_block"),
    "transformer": ("in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
    "StableDiffusion3Pipeline": ("patch_size", "sample_size", "pos_embed_max_size"),
    "FluxPipeline": ("num_single_layers",),
}
"""By a network's folder, and what a pipeline's transformer has besides."""
_LISTS: Final = ("layers_per_block", "sample_size")
_REFUSED: Final[Mapping[str, str]] = {
    "time_cond_proj_dim": "a U-Net that is told the guidance (LCM)",
    "class_embed_type": "a U-Net with classes",
    "encoder_hid_dim": "a U-Net for image prompts",
}
_FLUX_PATCH: Final = 2
"""Latents of a side that Flux's pipeline packs into one."""
_FLUX_SIDE: Final = 128
"""Latents of a side of Flux's own size: `FluxPipeline.default_sample_size`."""
_MOST_PATCH: Final = 8


def config(folder: Path, part: str, pipeline: str = "") -> dict[str, Any]:
    """Of a network, its sizes checked. Raises HeaderError or FileError."""
    try:
        found = model_files.read_object(folder / part / "config.json")
    except model_files.FileError as error:
        raise HeaderError(f"{part}: {error}") from None
    _check_sizes(part, found, _SIZES[part] + _SIZES.get(pipeline, ()))
    if part != "transformer":
        widths = found.get("block_out_channels")
        if not isinstance(widths, list) or not 0 < len(widths) <= 8 or not all(map(_is_width, widths)):
            raise HeaderError(f"{part}/config.json says no sound block_out_channels")
    if found.get("quantization_config") is not None:
        raise HeaderError(f"{part} is stored quantised, which onecard does not read. hint: take the folder in 16 bits")
    return found


def text_config(folder: Path, part: str, named: Any, wanted: Encoder) -> dict[str, Any]:
    """Of a text encoder that is one that we ask, with its tokenizer beside it. Raises HeaderError or FileError."""
    name = named[1] if isinstance(named, list) and len(named) == 2 else None
    known = [kind for kind in ENCODER_CLASSES if (kind == "t5") == (wanted == "t5")]
    if not any(name == ENCODER_CLASSES[kind] for kind in known):
        told, reads = foreign.plain([str(name)[:60]])[0], "T5's" if wanted == "t5" else "CLIP's alone"
        raise HeaderError(f"the folder's {part} is {told}, and onecard reads prompts with {reads}")
    found = model_files.read_object(folder / part / "config.json")
    if found.get("quantization_config") is not None:
        raise HeaderError(f"{part} is stored quantised, which onecard does not read. hint: take the folder in 16 bits")
    if wanted != "t5":
        _check_sizes(part, found, ("num_hidden_layers",))
    tokenizer = folder / part.replace("text_encoder", "tokenizer")
    files = ("tokenizer.json",) if wanted == "t5" else ("tokenizer.json", "vocab.json")
    if not any(model_files.is_there(tokenizer / file) for file in files):
        raise HeaderError(f"the folder has no {tokenizer.name}/{files[-1]}. hint: was it downloaded completely?")
    return found


def _check_sizes(part: str, found: Mapping[str, Any], sizes: Sequence[str]) -> None:
    for key in sizes:
        value = found.get(key)
        listed = value if isinstance(value, list) and key in _LISTS else [value]
        if not listed or not all(map(_is_size, listed)):
            raise HeaderError(f"{part}/config.json says no sound {key}. hint: take the folder as its publisher has it")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65536


def scale(vae: Mapping[str, Any]) -> int:
    """Pixels of a side for each cell of the latents."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def patch(family: Family, denoiser: Mapping[str, Any]) -> int:
    """Latents of a side that are one token of a transformer; 1 where there are none."""
    if family.denoiser == "unet":
        return 1
    return int(denoiser["patch_size"]) if "sample_size" in denoiser else _FLUX_PATCH


def check_networks(family: Family, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """That the two fit together, and that we know how to ask them. Raises HeaderError."""
    for key, told in _REFUSED.items():
        if denoiser.get(key) is not None:
            raise HeaderError(f"the folder has {told}, which onecard does not ask. hint: take the plain model")
    side = patch(family, denoiser)
    if side > _MOST_PATCH:
        raise HeaderError(f"transformer/config.json says patches of {side} latents, more than {_MOST_PATCH}")
    packed = side**2 if family.denoiser == "transformer" and "sample_size" not in denoiser else 1
    given = vae["latent_channels"] * packed
    if denoiser["in_channels"] != given:
        named = "U-Net" if family.denoiser == "unet" else "transformer"
        raise HeaderError(
            f"the {named} takes {denoiser['in_channels']} channels and the autoencoder gives {given}: it is made for "
            "inpainting or upscaling alone. hint: take the plain model"
        )
    if scale(vae) > 8:
        raise HeaderError("the autoencoder makes sides more than 8 times smaller, and sides are multiples of 8 here")


def own_size(family: Family, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """What the model was made for, by its network: width and height."""
    sample = denoiser.get("sample_size", _FLUX_SIDE)
    height, width = (sample[0], sample[-1]) if isinstance(sample, list) else (sample, sample)
    multiple = scale(vae) * patch(family, denoiser)
    whole = max(multiple, 8)
    sides = tuple(min(MAX_SIDE, max(SMALLEST_SIDE, side * scale(vae) // whole * whole)) for side in (width, height))
    return sides[0], sides[1]
