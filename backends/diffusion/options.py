"""The keys of `[models.NAME]` that only models that draw have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, StringConstraints

from backends.backend import HeaderError, Setting
from backends.diffusion import single_file
from backends.diffusion.kind import MAX_STEPS, Quantization
from backends.options import NO_BOOL, AdapterOptions

NamedScheduler = Literal["ddim", "ddpm", "deis", "dpm++", "euler", "euler_a", "heun", "lcm", "lms", "pndm", "unipc"]
"""The names of `backends.diffusion.kind.SCHEDULERS`."""


_PARTS: Final = (
    "unet", "transformer", "vae", "scheduler",
    "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3",
)  # fmt: skip
"""Of a folder of diffusers."""


class DrawOptions(AdapterOptions):
    """How images are drawn where requests do not say."""

    of_a_card: ClassVar[Mapping[str, str]] = MappingProxyType({"image_offload": "all networks are in host memory"})

    image_config: Annotated[str, StringConstraints(max_length=4096)] = ""
    """Of a model in one file: the folder with its configurations, tokenizers and scheduler as diffusers has them,
    relative to the file's own folder. Without it, the one beside the file that has its name."""
    quantization: Quantization = "none"
    """How linear layers are loaded: of the network that denoises, and of T5."""
    image_size: Annotated[str, StringConstraints(pattern=r"^(auto|[1-9]\d{1,3}x[1-9]\d{1,3})$")] = "auto"
    """The largest image, which memory is reserved for, such as "768x768"; auto: the size the model was made for."""
    image_steps: Annotated[int, NO_BOOL, Field(ge=1, le=MAX_STEPS)] | Literal["auto"] = "auto"
    """Steps of denoising where a request does not say; distilled models want 1 to 8. auto: 25, for Flux schnell 4."""
    image_guidance: Annotated[float, NO_BOOL, Field(ge=0, le=50)] | Literal["auto"] = "auto"
    """`guidance_scale` where a request does not say; distilled models want 0. auto: 7, for Flux 3.5."""
    image_scheduler: NamedScheduler | Literal["auto"] = "auto"
    """Which scheduler denoises where a request does not say; auto: the folder's own."""
    image_offload: Literal["auto", "none", "text", "parts", "all"] = "auto"
    """Networks that wait in host memory beside a card and come for their passes: text encoders ("text"), these and the
    autoencoder ("parts"), or all, one at a time. auto: as few as fit."""
    image_sliced: bool | Literal["auto"] = "auto"
    """Feed-forward layers of a U-Net in slices, which takes less memory and a little longer. auto: where it has to."""
    image_tiled: bool | Literal["auto"] = "auto"
    """Images are decoded in tiles of 512 pixels, which changes large ones a little. auto: where nothing else fits."""

    @staticmethod
    def folders(path: Path, options: Mapping[str, Setting]) -> Sequence[Path]:
        """Of each network, and of one file the folder with its configurations."""
        try:
            folder = single_file.places(path, options).folder
        except HeaderError:  # told where the model is described
            return ()
        return [folder, *(folder / part for part in _PARTS)]
