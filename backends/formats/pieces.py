"""What a model's text consists of once it is sorted: content, reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


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


def first_of(text: str, marks: Iterable[str], start: int = 0) -> tuple[int, str]:
    """Where the first of the marks begins and which it is, the longest of several; (-1, "") without one."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark, start)) >= 0]
    at, _, mark = min(found, default=(-1, 0, ""))
    return at, mark
