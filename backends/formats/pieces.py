"""What a model's text consists of once it is sorted: content, reasoning and tool calls."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

_STRETCH: Final = 2048
"""Characters that a reader looks at together: what it holds is copied at every mark."""


class Content(NamedTuple):
    """Words for the user."""

    text: str
    at: int = 0
    """Where they begin in what was fed, in characters: every one of them stands there as it is written."""


class Reasoning(NamedTuple):
    """Words the model wrote to itself."""

    text: str


class CallBegins(NamedTuple):
    """A tool call has begun; its arguments follow."""

    number: int
    """Counts the calls of one choice from 0."""
    id: str
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments: JSON text, in pieces that join to the whole."""

    number: int
    text: str


Piece = Content | Reasoning | CallBegins | CallArguments


def held_back(text: str, *marks: str) -> int:
    """How many characters at the end of `text` may be the beginning of one of the marks."""
    longest = max((len(mark) for mark in marks), default=1) - 1
    for length in range(min(len(text), longest), 0, -1):
        tail = text[-length:]
        if any(mark.startswith(tail) and len(mark) > length for mark in marks):
            return length
    return 0


def first_of(text: str, marks: tuple[str, ...], start: int = 0) -> tuple[int, str]:
    """Where the first of the marks begins and which it is, the longest of several; (-1, "") without one."""
    found = _any_of(marks).search(text, start)
    return (-1, "") if found is None else (found.start(), found.group())


@functools.cache
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    """All of them in one look at a text, because a search for each goes on to the end for those that are not there."""
    return re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))))


def stretches(text: str) -> Iterator[str]:
    """A text in parts, so that a reader's time grows with the text's length and no faster."""
    for at in range(0, len(text), _STRETCH):
        yield text[at : at + _STRETCH]
