"""What a dying worker said, made fit for a user: pure text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_ESSENCE_CHARS: Final = 240
REASON_CHARS: Final = 600
"""Of a sentence of our own, which ends with what to do."""
_TELLING: Final = re.compile(r"error|fail|assert|abort|out of memory|cannot|unknown|unsupported|invalid", re.IGNORECASE)
_NO_MEMORY: Final = re.compile(r"out of memory|failed to allocate|bad_alloc|cannot allocate memory", re.IGNORECASE)
_PLACES: Final = re.compile(r"(?:/[^\s/:'\"]+)+/")
_ADDRESSES: Final = re.compile(r"\(?\b0x[0-9a-fA-F]{4,}\b\)?")


def essence(lines: Iterable[str]) -> str:
    """The last telling line of a worker's stderr, fit for a user: no folders, no addresses, no control characters."""
    telling = [line for line in lines if _TELLING.search(line)]
    if not telling:
        return ""
    return clean(telling[-1])


def no_memory(line: str) -> bool:
    """Whether a library's sentence says that memory was short."""
    return _NO_MEMORY.search(line) is not None


def clean(line: str, *, most_chars: int = _ESSENCE_CHARS) -> str:
    """A sentence without folders, addresses and control characters, cut to a readable length."""
    line = _ADDRESSES.sub("", _PLACES.sub("", line))
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:most_chars]
