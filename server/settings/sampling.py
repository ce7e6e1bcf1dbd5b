"""How a model's tokens are chosen where a request does not say: its configuration over its files. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from backends.files.sampling_defaults import BOUNDS
from server.settings.builtin import BUILT_IN

if TYPE_CHECKING:
    from backends.backend import Header
    from server.settings.config import ModelConfig

SamplingSource = Literal["config", "model"]


def sampling_of(config: ModelConfig, header: Header | None) -> dict[str, tuple[float, SamplingSource]]:
    """Name of a request's field -> its default, and its source; `header` is None before the first look."""
    found: dict[str, tuple[float, SamplingSource]] = {}
    if (built_in := BUILT_IN.get(config.path)) is not None:
        found |= {name: (value, "model") for name, value in built_in.sampling.items()}
    if header is not None:
        found |= {name: (value, "model") for name, value in header.sampling.values.items()}
    configured = config.sampling.model_dump(exclude_none=True) if config.sampling is not None else {}
    found |= {name: (value, "config") for name, value in configured.items()}
    return {name: found[name] for name in BOUNDS if name in found}


def plain_sampling(config: ModelConfig, header: Header | None) -> dict[str, float]:
    """The same without who gives it."""
    return {name: value for name, (value, _) in sampling_of(config, header).items()}
