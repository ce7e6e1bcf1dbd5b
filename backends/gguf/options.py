"""The keys of `[models.NAME]` that only GGUF files have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from backends.options import NO_BOOL, AdapterOptions, ImageOptions, SoundOptions

HostLayers = Literal["auto"] | Annotated[int, Field(ge=0, le=10_000), NO_BOOL]


class GgufOptions(AdapterOptions, ImageOptions, SoundOptions):
    """How llama.cpp loads a file."""

    of_a_card: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(("expert_layers", "ffn_layers"), "all layers are in host memory")
    )

    expert_layers: HostLayers = "auto"
    """Layers of a mixture of experts whose experts lie in host memory beside a card; auto: as many as have to."""
    ffn_layers: HostLayers = "auto"
    """Layers whose other feed-forward weights do; auto: as many as have to, before whole layers leave the card."""

    projector: str = "auto"
    """The file with the model's eyes or ears (mmproj), relative to the model's own folder; auto: one beside it that
    fits; off: none."""
    load_mode: Literal["auto", "mmap", "direct", "lock"] = "auto"
    """How the file gets into memory: mapped (`mmap`), read past the page cache (`direct`), mapped and locked (`lock`);
    auto: mapped, but past the cache where the weights go to a card and the cache cannot hold them."""

    @model_validator(mode="after")
    def _layers_agree(self) -> Self:
        """Both are keys of a model's table, which has `gpu_layers` for every backend."""
        kept = next((key for key in ("expert_layers", "ffn_layers") if getattr(self, key) not in ("auto", 0)), None)
        if kept is not None and getattr(self, "gpu_layers", "auto") == 0:
            raise ValueError(f"{kept} keeps a part of layers from the card, and gpu_layers = 0 keeps them whole")
        return self
