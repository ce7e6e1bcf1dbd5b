"""What a model's text consists of once it is sorted: content, reasoning and tool calls."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """Words for the user."""

    text: str


class Reasoning(NamedTuple):
    """Words the model wrote to itself."""

    text: str


class Call(NamedTuple):
    """A whole, well-formed tool call; `arguments` is JSON text."""

    number: int
    id: str
    name: str
    arguments: str


Piece = Content | Reasoning | Call


def held_back(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
