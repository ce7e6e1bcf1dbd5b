"""What a diffusers folder says about itself: its pipeline, the sizes of its networks, the bytes of their tensors.

No class is taken from the folder by its name: only pipelines of `PIPELINES`, and schedulers of `kind.SCHEDULERS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backends.backend import Header, HeaderError
from backends.capabilities import counted
from backends.diffusion.kind import DRAW, MAX_SIDE, SCHEDULERS, size_problem
from backends.files import foreign, model_files, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.files.adapters import Adapter
    from backends.files.tensors import StoredTensor

INDEX: Final = "model_index.json"
WEIGHTS: Final = "diffusion_pytorch_model"
TEXT_WEIGHTS: Final = "model"
PIPELINES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "StableDiffusionPipeline": ("text_encoder",),
        "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
    }
)
"""Those that are served, and their text encoders; a U-Net and an autoencoder have all of them."""
_TEXT_CLASSES: Final = frozenset({"CLIPTextModel", "CLIPTextModelWithProjection"})
_MOST: Final = 1_000_000
_UNET_SIZES: Final = ("in_channels", "out_channels", "sample_size", "layers_per_block")
_VAE_SIZES: Final = ("in_channels", "out_channels", "latent_channels", "layers_per_block")
_REFUSED: Final[Mapping[str, str]] = {
    "time_cond_proj_dim": "a U-Net that is told the guidance (LCM)",
    "class_embed_type": "a U-Net with classes",
    "encoder_hid_dim": "a U-Net for image prompts",
}


@dataclass(frozen=True)
class DrawHeader(Header):
    """Of one folder."""

    backend: ClassVar[str] = "diffusion"

    pipeline: str
    unet: Mapping[str, Any] = field(repr=False)
    """config.json of the network that denoises."""
    vae: Mapping[str, Any] = field(repr=False)
    """config.json of the autoencoder."""
    scheduler: str
    """The folder's own, by our name for it."""
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    """Of everything that is loaded; the names begin with the part that they are of."""
    halves: frozenset[str]
    """The parts whose files' names say `.fp16.`; a folder may mix them with plain ones."""
    size: tuple[int, int]
    """Width and height of an image whose size is not asked for."""
    largest: tuple[int, int]
    """Of the largest image that memory is reserved for."""
    adapters: tuple[Adapter, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def gives(self) -> str:
        """Images."""
        return DRAW.gives

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """Their folders."""
        return PIPELINES[self.pipeline]

    @property
    def layers_per_block(self) -> int:
        """Of the U-Net; the most, where blocks differ."""
        layers = self.unet["layers_per_block"]
        return int(max(layers) if isinstance(layers, list) else layers)

    @property
    def scale(self) -> int:
        """Pixels of a side for each cell of the latents."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def largest_pixels(self) -> int:
        """Of the largest image."""
        return self.largest[0] * self.largest[1]

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        return {
            "architecture": self.pipeline.removesuffix("Pipeline"),
            "parameters": counted(sum(tensor.n_elements for tensor in self.tensors)),
            "size": "x".join(map(str, self.size)),
            "largest image": "x".join(map(str, self.largest)),
            "scheduler": self.scheduler,
        }

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return ["image_generation"]


def read(folder: Path, *, image_size: str = "auto") -> DrawHeader:
    """Read and check. Raises HeaderError; blocks."""
    try:
        model_files.check_folder(folder)
        index = model_files.read_object(folder / INDEX)
        pipeline = _pipeline(index)
        unet, vae = _config(folder, "unet", _UNET_SIZES), _config(folder, "vae", _VAE_SIZES)
        _check_networks(unet, vae)
        for part in PIPELINES[pipeline]:
            _check_text(folder, part, index.get(part))
        scheduler = _scheduler(folder)
        stored, halves = _stored(folder, ("unet", "vae", *PIPELINES[pipeline]))
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    own = _own_size(unet, vae)
    largest = own if image_size == "auto" else _parsed(image_size)
    if (why := size_problem(*largest, MAX_SIDE**2)) is not None:
        raise HeaderError(f"image_size: {why}")
    size = own if own[0] * own[1] <= largest[0] * largest[1] else largest
    return DrawHeader(pipeline, unet, vae, scheduler, tuple(stored), halves, size, largest)


def _parsed(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _pipeline(index: Mapping[str, Any]) -> str:
    """Raises HeaderError for one that is not served."""
    name = index.get("_class_name")
    if isinstance(name, str) and name in PIPELINES:
        return name
    told = foreign.plain([str(name)[:60]])[0]
    raise HeaderError(
        f"model_index.json says {told}, and onecard draws with {', '.join(PIPELINES)}. "
        "hint: take a Stable Diffusion 1.x, 2.x or XL as diffusers has it"
    )


def _config(folder: Path, part: str, sizes: Sequence[str]) -> dict[str, Any]:
    """Of a network, its sizes checked. Raises HeaderError or FileError."""
    found = model_files.read_object(folder / part / "config.json")
    for key in sizes:
        value = found.get(key)
        listed = value if isinstance(value, list) and key in ("layers_per_block", "sample_size") else [value]
        if not listed or not all(map(_is_size, listed)):
            raise HeaderError(f"{part}/config.json says no sound {key}. hint: take the folder as its publisher has it")
    widths = found.get("block_out_channels")
    if not isinstance(widths, list) or not 0 < len(widths) <= 8 or not all(map(_is_width, widths)):
        raise HeaderError(f"{part}/config.json says no sound block_out_channels")
    return found


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65536


def _check_networks(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """That the two fit together, and that we know how to ask them. Raises HeaderError."""
    for key, told in _REFUSED.items():
        if unet.get(key) is not None:
            raise HeaderError(f"the folder has {told}, which onecard does not ask. hint: take the plain model")
    if unet["in_channels"] != vae["latent_channels"]:
        raise HeaderError(
            f"the U-Net takes {unet['in_channels']} channels and the autoencoder gives {vae['latent_channels']}: it is "
            "made for inpainting or upscaling alone. hint: take the plain model"
        )
    if 2 ** (len(vae["block_out_channels"]) - 1) > 8:
        raise HeaderError("the autoencoder makes sides more than 8 times smaller, and sides are multiples of 8 here")


def _check_text(folder: Path, part: str, named: Any) -> None:
    """That a text encoder is CLIP's, with its tokenizer beside it. Raises HeaderError or FileError."""
    name = named[1] if isinstance(named, list) and len(named) == 2 else None
    if not isinstance(name, str) or name not in _TEXT_CLASSES:
        told = foreign.plain([str(name)[:60]])[0]
        raise HeaderError(f"the folder's {part} is {told}, and onecard reads prompts with CLIP's alone")
    model_files.read_object(folder / part / "config.json")
    tokenizer = folder / part.replace("text_encoder", "tokenizer")
    if not any(model_files.is_there(tokenizer / file) for file in ("tokenizer.json", "vocab.json")):
        raise HeaderError(f"the folder has no {tokenizer.name}/vocab.json. hint: was it downloaded completely?")


def _scheduler(folder: Path) -> str:
    """The folder's own, by our name. Raises HeaderError or FileError."""
    named = model_files.read_object(folder / "scheduler" / "scheduler_config.json").get("_class_name")
    found = next((name for name, its in SCHEDULERS.items() if its == named), None)
    if found is None:
        told = foreign.plain([str(named)[:60]])[0]
        raise HeaderError(f"the folder's scheduler is {told}, and onecard has {', '.join(SCHEDULERS.values())}")
    return found


def _stored(folder: Path, parts: Sequence[str]) -> tuple[list[StoredTensor], frozenset[str]]:
    """The tensors of all parts, `unet.` and so on before their names; which parts are halves. Raises FileError."""
    from dataclasses import replace

    found, halves = [], set()
    for part in parts:
        stem = TEXT_WEIGHTS if part.startswith("text_") else WEIGHTS
        half = f"{stem}.fp16"
        plain = any(model_files.is_there(folder / part / f"{stem}.safetensors{end}") for end in ("", ".index.json"))
        if not plain and model_files.is_there(folder / part / f"{half}.safetensors"):
            stem = half
            halves.add(part)
        try:
            stored, _ = tensors.read(folder / part, stem)
        except model_files.FileError as error:
            raise model_files.FileError(f"{part}: {error}") from None
        found += [replace(tensor, name=f"{part}.{tensor.name}") for tensor in stored]
    return found, frozenset(halves)


def _own_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> tuple[int, int]:
    """What the model was made for, by its U-Net: width and height."""
    sample = unet["sample_size"]
    height, width = (sample[0], sample[-1]) if isinstance(sample, list) else (sample, sample)
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    sides = tuple(min(MAX_SIDE, max(64, side * scale // 8 * 8)) for side in (width, height))
    return sides[0], sides[1]
