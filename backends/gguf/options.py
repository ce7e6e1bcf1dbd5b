"""The keys of `[models.NAME]` that only GGUF files have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.options import NO_BOOL, Options

HostLayers = Literal["auto"] | Annotated[int, Field(ge=0, le=10_000), NO_BOOL]


class GgufOptions(Options):
    """How llama.cpp loads a file."""

    expert_layers: HostLayers = "auto"
    """Layers of a mixture of experts whose experts lie in host memory beside a card; auto: as many as have to."""
    ffn_layers: HostLayers = "auto"
    """Layers whose other feed-forward weights do; auto: as many as have to, before whole layers leave the card."""
