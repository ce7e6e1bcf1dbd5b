"""The base of a backend's own keys of `[models.NAME]`, and the types of values that configuration is written in.

Imported by the server only: workers get plain values (`LoadModel.options`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from backends.images import IMAGE_MAX_TOKENS


def _no_bool(value: object) -> object:
    """TOML's `true` is no number, although Python's is."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def comma_list(value: object) -> object:
    """Environment and flags write lists as `a,b`."""
    return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value


NO_BOOL = BeforeValidator(_no_bool)
StrList = Annotated[list[str], BeforeValidator(comma_list)]


def _adapter_name(name: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name) is None:
        raise ValueError(
            f"an adapter's name has letters, digits, '.', '_' and '-' and at most 64 of them, and {name[:70]!r} has not"
        )
    return name


AdapterName = Annotated[str, AfterValidator(_adapter_name)]
AdapterPath = Annotated[str, Field(min_length=1, max_length=4096)]


class Options(BaseModel):
    """Keys of one backend; what is not written down is left to its engine."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True
    )
    of_a_card: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Keys that have no effect on a machine without a card, and what is so there in any case."""

    @staticmethod
    def folders(path: Path, options: Mapping[str, bool | int | float | str]) -> Sequence[Path]:
        """Folders below or beside a model's path whose files are the model's too, whether they are there or not.

        `options` are those that are written down. Blocks on the disk.
        """
        return ()


class ImageOptions(Options):
    """Of models that see."""

    image_max_tokens: Annotated[int, Field(ge=64, le=16_384), NO_BOOL] = IMAGE_MAX_TOKENS
    """Tokens that one image may take of models that see in many sizes."""


class SoundOptions(Options):
    """Of models that hear."""

    max_audio_s: Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), NO_BOOL] | None = None
    """The longest sound that a request may send, in seconds; None: 14400 of a recording, 120 in a prompt, where 3600
    are the most."""


class AdapterOptions(Options):
    """Of models that take LoRA adapters."""

    adapters: Annotated[dict[AdapterName, AdapterPath], Field(max_length=64)] = {}
    """LoRA adapters, served as `MODEL:ADAPTER`: peft's folders for a model folder, GGUF adapters for a GGUF file,
    safetensors for a model that draws."""
