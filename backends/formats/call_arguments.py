"""What stands for a call's arguments in a model's text, as it comes; pure. Arguments that are JSON are read here."""

from __future__ import annotations

import re
from typing import Protocol

_STRUCTURE = re.compile(r'["\\{}\[\]]')


class ArgumentsReader(Protocol):
    """Turns what stands for a call's arguments into JSON text."""

    def feed(self, text: str) -> tuple[str, int]:
        """The JSON that is certain by now, and how much of `text` belongs to the arguments (-1: all, and more may)."""
        ...


class JsonScan:
    """Finds the end of one JSON value that is an object or array; `depth` are the brackets already open."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int:
        """The offset behind the value, -1 where it goes on."""
        for found in _STRUCTURE.finditer(text):
            at, char = found.start(), found.group()
            if self._escaped:
                if at == self._escape_at:
                    continue
                self._escaped = False
            if self._in_string:
                if char == "\\":
                    self._escaped, self._escape_at = True, at + 1
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        if self._escaped:
            self._escaped = self._escape_at >= len(text)
            self._escape_at = 0
        return -1

    _escape_at: int = 0
    """Where the character stands that a backslash has made harmless."""


class JsonArguments:
    """Arguments that are JSON already."""

    def __init__(self) -> None:
        self._scan = JsonScan()

    def feed(self, text: str) -> tuple[str, int]:
        """See `ArgumentsReader`."""
        end = self._scan.end(text)
        return (text, -1) if end < 0 else (text[:end], end)
