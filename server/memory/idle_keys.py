"""Keys of a model's table that have no effect on a machine without a card, each told as a sentence. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from backends.registry import BACKENDS

if TYPE_CHECKING:
    from backends.messages import Device
    from server.settings.config import ModelConfig

_OF_TEXT: Final = {"kv_offload": "the KV cache is in host memory", "gpu_layers": "all layers are in host memory"}
_NOTHING: Final = ("auto", "none", "card", 0)
"""Values that ask for nothing of a card."""


def idle_keys(config: ModelConfig, backend: str, device: Device) -> list[str]:
    """What is configured in vain; nothing where there is a card."""
    if device != "cpu":
        return []
    refused, own = BACKENDS[backend].refuses, BACKENDS[backend].options().of_a_card
    told = {**{key: why for key, why in _OF_TEXT.items() if key not in refused}, **own}
    asked: dict[str, Any] = {key: getattr(config, key) for key in told}
    return [
        f"{key} = {_written(value)} has no effect without a card: {told[key]}"
        for key, value in asked.items()
        if value not in _NOTHING
    ]


def _written(value: object) -> str:
    """As TOML has it."""
    return f'"{value}"' if isinstance(value, str) else str(value).lower()
