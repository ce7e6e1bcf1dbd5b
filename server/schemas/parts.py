"""The parts of what a message says: words, and media where a model reads them; several contents as one.

A content of words alone is a string. One with media is a list of parts in chat completions' shape, media decoded.
"""

from __future__ import annotations

import base64
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from backends.messages import Medium
from server.schemas.media import field_of, medium_of, read_kind
from server.schemas.problems import problem, wrong_type

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_PARTS = 1024
Said = str | list[dict[str, Any]]


class Strict(BaseModel):
    """An object of a conversation: no value is turned into another type, unknown fields are kept to be named."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class TextPart(Strict):
    """One piece of what was said: words, what a model has refused to say, or a medium that some model reads."""

    kinds: ClassVar[tuple[str, ...]]
    """The types whose `text` is one; the first is the one to send."""
    takes_media: ClassVar[bool] = True
    type: str
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _is_known(self) -> TextPart:
        if self.medium is not None:
            return self
        if self.type not in (*self.kinds, "refusal"):
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': parts of this type are not supported by this server; send parts of type "
                "'{kind}'.",
                field=".type",
                kind=self.kinds[0],
            )
        name = "refusal" if self.type == "refusal" else "text"
        if getattr(self, name) is None:
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=f".{name}")
        return self

    @cached_property
    def medium(self) -> Medium | None:
        """The image or sound; None where it is words."""
        if not self.takes_media or read_kind(self.type) is None:
            return None
        return medium_of(self.type, self.model_extra or {})

    @property
    def plain(self) -> str:
        """The words of this part."""
        return (self.refusal if self.type == "refusal" else self.text) or ""

    @property
    def unknown(self) -> list[str]:
        """Names of fields that mean nothing here."""
        known = () if self.medium is None else (field_of(self.type), "detail")
        return [name for name in self.model_extra or {} if name not in known]


class Part(TextPart):
    """One piece of a message."""

    kinds = ("text",)


def _string_or_parts(value: Any) -> Any:
    if value is not None and not isinstance(value, (str, list)):
        raise wrong_type("a string or an array of objects", value)
    return value


def _content_tag(value: Any) -> str:
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else "<none>"


Content = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[list[Part], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("<parts>")]
    | Annotated[None, Tag("<none>")],
    Discriminator(_content_tag),
    BeforeValidator(_string_or_parts),
]


def said(parts: Sequence[TextPart]) -> Said:
    """What parts say together: words joined by line ends, or a list where media are among them."""
    if all(part.medium is None for part in parts):
        return "\n".join(part.plain for part in parts)
    return [words(part.plain) if part.medium is None else picture(part.medium) for part in parts]


def words(text: str) -> dict[str, Any]:
    """A part of words, as chat completions have it."""
    return {"type": "text", "text": text}


def picture(medium: Medium) -> dict[str, Any]:
    """A part with a medium that was read, as chat completions have it."""
    kind = "image_url" if medium.kind == "image" else "input_audio"
    return {"type": kind, field_of(kind): medium}


def as_sent(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as JSON can hold them, media as a client would send them."""
    return [
        {**message, "content": [_sent(part) for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]


def _sent(part: dict[str, Any]) -> dict[str, Any]:
    medium = None if part["type"] == "text" else part[field_of(part["type"])]
    if not isinstance(medium, Medium):  # words, or a part of an earlier response
        return part
    name = field_of(part["type"])
    data = base64.b64encode(medium.data).decode("ascii")
    if name == "input_audio":
        return {**part, name: {"data": data, "format": medium.media_type.rpartition("/")[2]}}
    detail = {"detail": medium.detail} if medium.detail else {}
    return {**part, name: {"url": f"data:{medium.media_type};base64,{data}", **detail}}


def joined(contents: Iterable[Said | None], joint: str) -> Said:
    """Several contents as one; those that say nothing are left out."""
    found = [content for content in contents if content]
    if all(isinstance(content, str) for content in found):
        return joint.join(content for content in found if isinstance(content, str))
    return [part for content in found for part in ([words(content)] if isinstance(content, str) else content)]


def text_of(content: Said | None) -> str:
    """The words of a content."""
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part["type"] == "text")
    return content or ""


def media_apart(messages: Iterable[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Medium]]:
    """The messages as jobs hold them: their media in a list, and in their places its numbers."""
    media: list[Medium] = []

    def numbered(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        media.append(part[field_of(part["type"])])
        return {"type": "medium", "medium": len(media) - 1}

    apart = [
        {**message, "content": [numbered(part) for part in content]}
        if isinstance(content := message.get("content"), list)
        else message
        for message in messages
    ]
    return apart, media
