"""The pipelines that are served: which networks each has, how it is told the guidance, and what sizes it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from backends.diffusion.kind import FLOW_SCHEDULERS, SCHEDULERS

Encoder = Literal["clip", "clip_projected", "t5"]
Guidance = Literal["free", "embedded", "none"]
"""Classifier-free: each step is computed with and without the prompt; or the network is told a number; or none."""
ENCODER_CLASSES: Final[Mapping[Encoder, str]] = MappingProxyType(
    {"clip": "CLIPTextModel", "clip_projected": "CLIPTextModelWithProjection", "t5": "T5EncoderModel"}
)
"""Of transformers; the names that folders say, too."""
SCHNELL_STEPS: Final = 4
"""Of a Flux that was distilled to need few, and no guidance."""
FLUX_GUIDANCE: Final = 3.5
STEPS: Final = 25
GUIDANCE: Final = 7.0


@dataclass(frozen=True)
class Family:
    """One of them."""

    denoiser: Literal["unet", "transformer"]
    """The folder of the network that denoises."""
    denoiser_class: str
    """Of diffusers."""
    encoders: Mapping[str, Encoder]
    """The folders of the text encoders, and what each is."""
    optional: str = ""
    """An encoder that a folder may leave out."""
    flow: bool = False
    """Whether it denoises by flow matching (https://arxiv.org/abs/2209.03003), and not by a diffusion's schedule."""
    most_tokens: int = 0
    """Of a prompt for T5, its end among them, as diffusers' pipelines have it."""

    @property
    def schedulers(self) -> Mapping[str, str]:
        """Diffusers' classes by the names that requests say."""
        return FLOW_SCHEDULERS if self.flow else SCHEDULERS


_UNET: Final = "UNet2DConditionModel"
_JOINT: Final[Mapping[str, Encoder]] = MappingProxyType(
    {"text_encoder": "clip_projected", "text_encoder_2": "clip_projected", "text_encoder_3": "t5"}
)
FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        "StableDiffusionPipeline": Family("unet", _UNET, MappingProxyType({"text_encoder": "clip"})),
        "StableDiffusionXLPipeline": Family(
            "unet", _UNET, MappingProxyType({"text_encoder": "clip", "text_encoder_2": "clip_projected"})
        ),
        "StableDiffusion3Pipeline": Family(
            "transformer", "SD3Transformer2DModel", _JOINT, "text_encoder_3", flow=True, most_tokens=256
        ),
        "FluxPipeline": Family(
            "transformer",
            "FluxTransformer2DModel",
            MappingProxyType({"text_encoder": "clip", "text_encoder_2": "t5"}),
            flow=True,
            most_tokens=512,
        ),
    }
)
"""By the names that model_index.json says."""
