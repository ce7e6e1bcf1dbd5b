"""Streaming: takes tool calls out of a model's text, for every notation whose calls stand between marks.

Pure; the same result however the text is cut. A call is announced once its name is known and its arguments follow as
they come; what begins like a call and turns out not to be one before its arguments stays text, as it was written.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import jiter
import msgspec

from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, first_of, held_back

_STRUCTURE = re.compile(r'["\\{}\[\]]')
_NAMED = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.){1,256}")', re.DOTALL)
_NAMED_OBJECT = re.compile(rf'{_NAMED.pattern}\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)', re.DOTALL)
_MAX_HEADER_CHARS = 512


class Opening(NamedTuple):
    """A call's name, and where its arguments begin."""

    name: str
    at: int


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
        for match in _STRUCTURE.finditer(text):
            at, char = match.start(), match.group()
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


class Find(Protocol):
    """Finds a call's opening at the start of a text, up to its arguments; where the text is cut, its name will do."""

    def __call__(self, text: str, *, cut: bool = False) -> Opening | None:
        """None where there is none, or not yet."""
        ...


def header(pattern: str) -> Find:
    """An opening by a regular expression whose group `name` is the name; an object of arguments follows it."""
    name_alone = re.compile(pattern, re.DOTALL)
    with_arguments = re.compile(rf"{pattern}\s*(?=\{{)", re.DOTALL)

    def find(text: str, *, cut: bool = False) -> Opening | None:
        match = (name_alone if cut else with_arguments).match(text)
        return None if match is None else Opening(match["name"].strip(), match.end())

    return find


def named_object(text: str, *, cut: bool = False) -> Opening | None:
    """The opening of `{"name": ..., "arguments": {`."""
    match = (_NAMED if cut else _NAMED_OBJECT).match(text)
    if match is None:
        return None
    try:
        name = jiter.from_json(match[1].encode())
    except ValueError:
        return None
    return Opening(name, match.end()) if name else None


@dataclass(frozen=True)
class Notation:
    """How one family marks its calls."""

    begins: tuple[str, ...]
    """Marks behind which calls stand."""
    opening: Find = named_object
    arguments: Callable[[], ArgumentsReader] = JsonArguments
    gaps: tuple[str, ...] = ()
    """What may stand around and between calls, besides `begins` and white space."""
    enclosed: bool = True
    """Arguments lie in an object with the name, whose rest has to be read."""
    many: bool = False
    """Calls may follow each other without another mark."""
    bare: bool = False
    """A text that opens with `{` is a call without any mark."""

    def within(self, closing: str) -> Notation:
        """The same inside of a block of reasoning: a call needs a mark, and the block's own end may follow it."""
        return replace(self, gaps=(*self.gaps, closing), bare=False)


class _State(enum.Enum):
    """`TEXT -> SECTION -> ARGUMENTS -> [CLOSING ->] SECTION -> ... -> TEXT`."""

    TEXT = enum.auto()
    SECTION = enum.auto()
    ARGUMENTS = enum.auto()
    CLOSING = enum.auto()


class CallReader:
    """One choice's text; `new_id` names the calls, `names` are the functions offered."""

    def __init__(self, notation: Notation, *, new_id: Callable[[], str], names: Collection[str] = ()) -> None:
        self._notation = notation
        self._new_id = new_id
        self._names = names
        self._state = _State.TEXT
        self._n_fed = 0
        self._held = ""
        self._at_start = True
        self._gap = ""
        """White space before the section, which belongs to it."""
        self._written = ""
        """What was read of the section since its last call."""
        self._marked = False
        """A mark stands in `_written`, so a call has to follow."""
        self._bare = False
        """No mark was needed, so only the name of a function tells a call from a text."""
        self._after_call = False
        self._scan = JsonScan()
        self._scanned = 0
        self._arguments: ArgumentsReader = JsonArguments()
        self.n_calls = 0
        self.is_cut = False
        """See `Reader`."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._n_fed += len(text)
        self._held += text
        pieces: list[Piece] = []
        moves = {
            _State.TEXT: self._text,
            _State.SECTION: self._section,
            _State.ARGUMENTS: self._read_arguments,
            _State.CLOSING: self._close,
        }
        while moves[self._state](pieces):
            pass
        return pieces

    def flush(self, *, cut: bool) -> list[Piece]:
        """See `Reader`."""
        text, self._held = self._held, ""
        if self._state is _State.TEXT:
            return [self._content(text)] if text and not (self._after_call and not text.strip()) else []
        if self._state is not _State.SECTION:
            self.is_cut = self._state is _State.ARGUMENTS
            return []
        says_more = bool(text.strip()) and not self._is_gap_beginning(text)
        if cut and (self._marked or (self._notation.many and says_more)):
            opening = self._notation.opening(text[:_MAX_HEADER_CHARS], cut=True)
            named = opening is not None and self._takes(opening.name)
            if named or not self._bare or not self._marked:
                return self._cut_short(opening)
        if self._marked:
            return [self._content(self._gap + self._written + text)]
        return [self._content(text)] if says_more else []

    @property
    def n_passed(self) -> int:
        """See `Reader`."""
        begun = len(self._gap) + len(self._written) if self._state is _State.SECTION else 0
        return self._n_fed - len(self._held) - begun

    def _cut_short(self, opening: Opening | None) -> list[Piece]:
        """A call without arguments, where at least its name is there; nothing of one whose name is not."""
        pieces: list[Piece] = []
        self.is_cut = True
        if opening is not None:
            self._announce(pieces, opening.name)
        return pieces

    def _takes(self, name: str) -> bool:
        return not self._bare or not self._names or name in self._names

    def _content(self, text: str) -> Content:
        """What was written right before what is held now."""
        return Content(text, self._n_fed - len(self._held) - len(text))

    def _text(self, pieces: list[Piece]) -> bool:
        if self._at_start and self._notation.bare and (stripped := self._held.lstrip()):
            if stripped[0] == "{":
                self._enter(self._held[: len(self._held) - len(stripped)], "")
                self._held = stripped
                return True
            self._at_start = False
        at, mark = first_of(self._held, self._notation.begins)
        if at >= 0 and at + len(mark) == len(self._held) and self._may_grow(mark):
            return False
        if at >= 0:
            before = self._held[:at]
            gap = before[len(before.rstrip()) :]
            self._say(pieces, before.rstrip())
            self._enter(gap, mark)
            self._held = self._held[len(gap) + len(mark) :]
            return True
        keep = held_back(self._held, *self._notation.begins)
        self._say(pieces, self._held[: len(self._held) - keep].rstrip())
        return False

    def _may_grow(self, mark: str) -> bool:
        """Another mark begins with this one."""
        return any(other != mark and other.startswith(mark) for other in self._notation.begins)

    def _enter(self, gap: str, mark: str) -> None:
        self._state = _State.SECTION
        self._gap, self._written, self._marked = gap, mark, True
        self._bare = not mark
        self._at_start = False
        self._begin_scan()

    def _begin_scan(self) -> None:
        self._scan, self._scanned = JsonScan(), 0

    def _section(self, pieces: list[Piece]) -> bool:
        """Between the marks and a call's arguments."""
        if self._scanned == 0 and not self._skip_gaps():
            return False
        opening = self._notation.opening(self._held[:_MAX_HEADER_CHARS])
        if opening is not None and (self._marked or self._notation.many):
            if not self._takes(opening.name):
                return self._leave(pieces)
            self._announce(pieces, opening.name)
            self._held = self._held[opening.at :]
            self._arguments = self._notation.arguments()
            self._state = _State.ARGUMENTS
            return True
        if self._notation.enclosed:
            return self._whole_object(pieces)
        if len(self._held) < _MAX_HEADER_CHARS and (self._marked or self._notation.many):
            return False
        return self._leave(pieces)

    def _skip_gaps(self) -> bool:
        """Drop white space and marks; False where more text has to come first."""
        marks = (*self._notation.begins, *self._notation.gaps)
        while True:
            stripped = self._held.lstrip()
            if any(mark.startswith(stripped) and mark != stripped for mark in marks):
                return False
            found = max((mark for mark in marks if stripped.startswith(mark)), key=len, default="")
            if not found:
                break
            cut = len(self._held) - len(stripped) + len(found)
            opens = found in self._notation.begins and not self._marked
            self._written = found if opens else self._written + self._held[:cut]
            self._marked = self._marked or opens
            self._held = self._held[cut:]
        self._written += self._held[: len(self._held) - len(stripped)]
        self._held = stripped
        return True

    def _is_gap_beginning(self, text: str) -> bool:
        stripped = text.lstrip()
        return any(mark.startswith(stripped) for mark in (*self._notation.begins, *self._notation.gaps))

    def _whole_object(self, pieces: list[Piece]) -> bool:
        """A call that is written in another order is taken when it is whole."""
        if not self._held.startswith("{") or not (self._marked or self._notation.many):
            return self._leave(pieces)
        end = self._scan.end(self._held[self._scanned :])
        if end < 0:
            self._scanned = len(self._held)
            return False
        end += self._scanned
        self._begin_scan()
        call = read_call(self._held[:end])
        if call is None or not self._takes(call[0]):
            return self._leave(pieces)
        self._announce(pieces, call[0])
        pieces.append(CallArguments(self.n_calls - 1, call[1]))
        self._held = self._held[end:]
        return True

    def _leave(self, pieces: list[Piece]) -> bool:
        """What follows is text again; a mark without a call was text, too."""
        self._state = _State.TEXT
        self._begin_scan()
        if self._marked and (written := self._gap + self._written):
            pieces.append(self._content(written))
            self._after_call = False
        self._gap = self._written = ""
        self._marked = False
        return True

    def _announce(self, pieces: list[Piece], name: str) -> None:
        pieces.append(CallBegins(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        self._gap = self._written = ""
        self._marked = False
        self._after_call = True
        self._begin_scan()

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        out, used = self._arguments.feed(self._held)
        if out:
            pieces.append(CallArguments(self.n_calls - 1, out))
        if used < 0:
            self._held = ""
            return False
        self._held = self._held[used:]
        self._state = _State.CLOSING if self._notation.enclosed else _State.SECTION
        self._scan = JsonScan(depth=1)
        return True

    def _close(self, _pieces: list[Piece]) -> bool:
        """The rest of the object around the arguments says nothing."""
        end = self._scan.end(self._held)
        if end < 0:
            self._held = ""
            return False
        self._held = self._held[end:]
        self._begin_scan()
        self._state = _State.SECTION
        return True

    def _say(self, pieces: list[Piece], text: str) -> None:
        """What is held begins with this text outside calls; the space around a call is layout."""
        if text:
            self._held = self._held[len(text) :]
            pieces.append(self._content(text.lstrip() if self._after_call else text))
            self._after_call = False


def read_call(text: str) -> tuple[str, str] | None:
    """Name and arguments (JSON text) of a call that is one JSON object; None where it is malformed."""
    try:
        value = jiter.from_json(text.encode(), allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return name, arguments
    if arguments is None or isinstance(arguments, dict):
        return name, msgspec.json.encode(arguments or {}).decode()
    return None
