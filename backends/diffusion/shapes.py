"""The shapes of answers with images, whole and as events, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Literal

import msgspec


class ImageData(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    seed: int | None = None
    """What draws it again."""


class ImageInputs(msgspec.Struct, frozen=True):
    """What the input tokens are of."""

    text_tokens: int
    image_tokens: int = 0


class ImageUsage(msgspec.Struct, frozen=True):
    """Tokens of the prompt, and one for each 256 pixels."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: ImageInputs


class Images(msgspec.Struct, frozen=True, omit_defaults=True):
    """The whole answer."""

    created: int
    data: list[ImageData]
    background: str
    output_format: str
    size: str
    usage: ImageUsage
    quality: Literal["low", "medium", "high"] | None = None


class ImageEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What all events of a stream have."""

    b64_json: str
    created_at: int
    size: str
    quality: Literal["low", "medium", "high", "auto"]
    background: Literal["opaque"] = "opaque"
    output_format: str


class ImagePartial(ImageEvent, frozen=True, kw_only=True):
    """What the image looks like on its way."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class ImageCompleted(ImageEvent, frozen=True, kw_only=True):
    """The image."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    usage: ImageUsage
    seed: int


class EditPartial(ImageEvent, frozen=True, kw_only=True):
    """What an edited image looks like on its way."""

    type: Literal["image_edit.partial_image"] = "image_edit.partial_image"
    partial_image_index: int


class EditCompleted(ImageEvent, frozen=True, kw_only=True):
    """The edited image."""

    type: Literal["image_edit.completed"] = "image_edit.completed"
    usage: ImageUsage
    seed: int
