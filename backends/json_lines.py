"""Where a line may end in JSON: behind an opening bracket or a comma, and before a closing bracket. As writers put it.

A grammar's white space is allowed between any two lexemes, so that a weak model ends lines before colons and commas.
This takes the tokens away that would. Strings hold no line ends, so only tokens with one are looked at. Pure.
"""

from __future__ import annotations

import codecs
import enum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from backends.formats.pieces import CallArguments, CallBegins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.formats.base import Reader

_SPACES = b" \t\r\n"
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class _State(enum.Enum):
    """What was written last, outside of strings but for the first four."""

    IN_KEY = enum.auto()
    IN_TEXT = enum.auto()
    ESCAPED_KEY = enum.auto()
    ESCAPED_TEXT = enum.auto()
    OPEN = enum.auto()
    COMMA = enum.auto()
    SPACE = enum.auto()
    """Behind a comma."""
    NEW_LINE = enum.auto()
    """Behind an opening bracket or a comma."""
    KEY = enum.auto()
    COLON = enum.auto()
    VALUE = enum.auto()
    LAST_LINE = enum.auto()
    """A new line behind a value: the bracket closes."""


_IN_STRINGS = {
    _State.IN_KEY: (_State.KEY, _State.ESCAPED_KEY),
    _State.IN_TEXT: (_State.VALUE, _State.ESCAPED_TEXT),
}
_ESCAPED = {_State.ESCAPED_KEY: _State.IN_KEY, _State.ESCAPED_TEXT: _State.IN_TEXT}
_BEFORE_KEYS = frozenset({_State.OPEN, _State.COMMA, _State.SPACE, _State.NEW_LINE})
_LINE_ENDS = {_State.OPEN: _State.NEW_LINE, _State.COMMA: _State.NEW_LINE, _State.VALUE: _State.LAST_LINE}


class _Walk:
    """JSON, byte by byte; `brackets` are those open."""

    __slots__ = ("brackets", "state")

    def __init__(self, state: _State, brackets: bytes) -> None:
        self.state = state
        self.brackets = bytearray(brackets)

    def feed(self, piece: bytes) -> bool:
        """Go on; False where a line ends at a place where no writer ends one."""
        if self.state in _IN_STRINGS and b'"' not in piece and b"\\" not in piece:
            return True
        fits = True
        for byte in piece:
            fits = self._byte(byte) and fits
        return fits

    def _byte(self, byte: int) -> bool:
        state = self.state
        if state in _IN_STRINGS:
            closed, escaped = _IN_STRINGS[state]
            self.state = closed if byte == 0x22 else escaped if byte == 0x5C else state
        elif state in _ESCAPED:
            self.state = _ESCAPED[state]
        elif byte == 0x0A:
            self.state = _LINE_ENDS.get(state, state)
            return state in _LINE_ENDS or not self.brackets
        elif byte in _SPACES:
            self.state = _State.SPACE if state is _State.COMMA else state
        elif byte == 0x2C:
            self.state = _State.COMMA
            return state is not _State.LAST_LINE
        elif byte in b"{[":
            self.brackets.append(byte)
            self.state = _State.OPEN
        else:
            self._other(byte)
        return True

    def _other(self, byte: int) -> None:
        if byte == 0x22 and self.brackets:  # outside of brackets there is text as well
            key = self.brackets[-1] == 0x7B and self.state in _BEFORE_KEYS
            self.state = _State.IN_KEY if key else _State.IN_TEXT
            return
        if byte in b"}]" and self.brackets:
            self.brackets.pop()
        self.state = _State.COLON if byte == 0x3A else _State.VALUE


class _Choice(NamedTuple):
    """Tokens with line ends, as ids: those that may not come, and those that may where the bracket may close."""

    never: NDArray[np.intp]
    last: NDArray[np.intp]


class LineTable:
    """One vocabulary's tokens with line ends; each question is answered once."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._ends = [token for token, piece in enumerate(pieces) if b"\n" in piece]
        self._commas = self._beginning(pieces, b",")
        self._closing = {opening: self._beginning(pieces, bytes([opening + 2])) for opening in b"{["}
        self._known: dict[tuple[_State, int], _Choice] = {}

    @staticmethod
    def _beginning(pieces: Sequence[bytes], mark: bytes) -> NDArray[np.bool_]:
        return np.fromiter((piece.lstrip(b" \t").startswith(mark) for piece in pieces), np.bool_, len(pieces))

    def restrict(self, allowed: NDArray[np.bool_], state: _State, bracket: int) -> None:
        """Take away what ends a line at the wrong place, in place."""
        never, last = self._choice(state, bracket)
        allowed[never] = False
        if state is not _State.LAST_LINE and not (last.size and allowed[last].any()):
            return
        if not (allowed & self._closing[bracket]).any():
            if state is not _State.LAST_LINE:
                allowed[last] = False
        elif state is _State.LAST_LINE:
            allowed &= ~self._commas

    def _choice(self, state: _State, bracket: int) -> _Choice:
        if (known := self._known.get((state, bracket))) is None:
            never: list[int] = []
            last: list[int] = []
            for token in self._ends:
                walk = _Walk(state, b"[" + bytes([bracket]))
                if not walk.feed(self.pieces[token]):
                    never.append(token)
                elif walk.state is _State.LAST_LINE:
                    (never if self.pieces[token].strip() else last).append(token)
            known = _Choice(np.array(never, dtype=np.intp), np.array(last, dtype=np.intp))
            self._known[state, bracket] = known
        return known


class JsonLines:
    """One text's: JSON from its beginning with `at_once`, and the arguments of the calls that this reader finds."""

    def __init__(self, table: LineTable, *, at_once: bool, calls: Reader | None = None) -> None:
        self._table = table
        self._calls = calls
        self._decoder = _utf8_decoder("replace")
        self._walk = _Walk(_State.VALUE, b"") if at_once else None
        self._in_call = False

    def restrict(self, allowed: NDArray[np.bool_]) -> None:
        """Take away what ends a line at the wrong place, in place; nothing outside of brackets."""
        walk = self._walk
        if walk is not None and walk.brackets:
            self._table.restrict(allowed, walk.state, walk.brackets[-1])

    def feed(self, token: int) -> None:
        """The text goes on."""
        piece = self._table.pieces[token]
        if self._walk is not None and not self._in_call:
            self._walk.feed(piece)
        if self._calls is None:
            return
        for found in self._calls.feed(self._decoder.decode(piece)):
            if isinstance(found, CallBegins):
                self._walk, self._in_call = _Walk(_State.VALUE, b""), True
            elif isinstance(found, CallArguments) and self._walk is not None:
                self._walk.feed(found.text.encode())
