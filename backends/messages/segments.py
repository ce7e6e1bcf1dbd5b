"""A prompt made of parts: text, tokens, and media that an engine computes rows of."""

from __future__ import annotations

from backends.messages.media import Medium
from backends.messages.plain import Plain


class TextSegment(Plain, tag="text", frozen=True):
    """Text; a special token's literal in it is text where `plain` says so."""

    text: str
    plain: bool = True


class TokenSegment(Plain, tag="tokens", frozen=True):
    """Token ids of this model's own vocabulary."""

    tokens: list[int]


class MediaSegment(Plain, tag="media", frozen=True):
    """An image or a sound; how many rows and positions it takes is its engine's to say."""

    medium: Medium


Segment = TextSegment | TokenSegment | MediaSegment
