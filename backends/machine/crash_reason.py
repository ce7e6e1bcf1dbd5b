"""What a dying worker said, made fit for a user: pure text."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_ESSENCE_CHARS: Final = 240
REASON_CHARS: Final = 600
"""Of a sentence of our own, which ends with what to do."""
_TELLING: Final = re.compile(
    r"error|fail|assert|abort|out of memory|cannot|unknown|unsupported|invalid|what\(\):|panicked", re.IGNORECASE
)
_NO_MEMORY: Final = re.compile(r"out of memory|failed to allocate|bad_alloc|cannot allocate memory", re.IGNORECASE)
LOAD_HINT: Final = "hint: the file is damaged, or made for another version; take the publisher's"
_ASSERTED: Final = re.compile(r"(?:(\S+:\d+): )?(?:GGML_ASSERT|Assertion) ?[(`'](.+)[)'`] failed")
_OURS: Final = re.compile(r"^worker error: \w+ at (.+)")
_THROWN: Final = re.compile(r"what\(\):\s*(.+)")
_PLACES: Final = re.compile(r"(?:/[^\s/:'\"]+)+/")
_ADDRESSES: Final = re.compile(r"\(?\b0x[0-9a-fA-F]{4,}\b\)?")


def essence(lines: Iterable[str]) -> str:
    """The last telling line of a worker's stderr, fit for a user: no folders, no addresses, no control characters."""
    telling = [line for line in lines if _TELLING.search(line)]
    if not telling:
        return ""
    last = telling[-1]
    if (found := _ASSERTED.search(last)) is not None:
        place = f" ({found[1]})" if found[1] else ""
        return clean(f"llama.cpp found that {found[2]} does not hold{place}")
    if (found := _OURS.search(last)) is not None:
        return clean(f"an error in onecard or its library, in {found[1]}")
    if (found := _THROWN.search(last)) is not None:
        return clean(f"its library failed: {found[1]}")
    return clean(last)


def in_words(error: BaseException) -> str:
    """What an error says, fit for a user; where it says nothing, what its kind means."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = clean(_plain(_whole(lines)))
    if isinstance(error, KeyError):
        return f"it lacks the entry {said}"
    if not said or re.fullmatch(r"\W*|\w{1,8}", said):
        return next((words for kind, words in _SILENT if isinstance(error, kind)), "its library ended without a reason")
    return said


def _plain(said: str) -> str:
    """Python's way of saying that a value is of the wrong type, and names of classes, in words."""
    if (found := _WRONG_TYPE.search(said)) is not None:
        kind = next((group for group in found.groups() if group), "")
        return f"one of its values is {_TYPES.get(kind, 'of a kind')} where something else belongs ({said})"
    return _CLASSES.sub("", _CLASS.sub(r"\1", said))


_WRONG_TYPE: Final = re.compile(
    r"'(\w+)' object (?:has no attribute|is not)|argument of type '(\w+)'|unsupported operand .*'(\w+)'|not '?(\w+)'?$"
)
_TYPES: Final = {
    "int": "a number",
    "float": "a number",
    "str": "a text",
    "list": "a list",
    "dict": "an object",
    "NoneType": "null",
    "bool": "true or false",
}
_CLASSES: Final = re.compile(r"\b[A-Z]\w*(?:Error|Exception): ")
_CLASS: Final = re.compile(r"<class '(?:\w+\.)*(\w+)'>")


def _whole(lines: list[str]) -> str:
    """The first line, and the next one where it only announces that."""
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return lines[0] if lines else ""


_SILENT: Final = (
    (RecursionError, "it is nested deeper than any model's file is"),
    (MemoryError, "it wants more memory than there is"),
    (AssertionError, "its library found a figure that contradicts another one"),
    (AttributeError, "it lacks what its architecture needs"),
    (IndexError, "a figure in it leads beyond what is there"),
    (OSError, "one of its files cannot be read"),
    (ValueError, "a value in it is none that its library takes"),
)


def signal_in_words(number: int) -> str:
    """A signal's name, and what it means of a worker."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
    return f"{name} ({_SIGNALS[name]})" if name in _SIGNALS else name


_SIGNALS: Final = {
    "SIGABRT": "its library gave up",
    "SIGSEGV": "its library went beyond its memory",
    "SIGBUS": "a file was cut while it was read, or its disk failed",
    "SIGFPE": "its library divided by zero",
    "SIGILL": "its library is built for another processor",
    "SIGKILL": "it was killed: by the system for want of memory, or by hand",
    "SIGTERM": "it was ended by hand",
}


def no_memory(line: str) -> bool:
    """Whether a library's sentence says that memory was short."""
    return _NO_MEMORY.search(line) is not None


def clean(line: str, *, most_chars: int = _ESSENCE_CHARS) -> str:
    """A sentence without folders, addresses and control characters, cut to a readable length."""
    line = _ADDRESSES.sub("", _PLACES.sub("", line))
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:most_chars]
