"""Where a line may end in JSON, how far the next one is indented, and how long a number grows. As writers put it.

A line may end behind an opening bracket that holds something, behind a comma, and before a closing bracket. The first
indentation sets the unit, every other one is as deep as its line. A grammar's white space is allowed between any two
lexemes and of any width, so that a weak model ends lines before colons and draws columns. This takes the tokens away
that would. Strings hold no line ends, so only tokens with one are looked at, and those behind one. An integer of a
schema has no last digit, so that a greedy model would write zeros to the end of its context. Pure.
"""

from __future__ import annotations

import codecs
import enum
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from backends.formats.pieces import CallArguments, CallBegins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.formats.base import PieceReader

_SPACES = b" \t\r\n"
_SPACE, _TAB = 0x20, 0x09
_WIDEST: Final = {_SPACE: 40, _TAB: 12}
"""Of an indentation: what `backends.formats.base.PRETTY` lets pass."""
_WIDEST_UNIT: Final = {_SPACE: 8, _TAB: 1}
_MAX_DIGITS: Final = 20
"""In a row: every integer of 64 bits can be written, an id for example, and every double."""
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
    FIRST_LINE = enum.auto()
    """A new line behind an opening bracket: something follows."""
    NEW_LINE = enum.auto()
    """Behind a comma."""
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
_LINES = frozenset({_State.FIRST_LINE, _State.NEW_LINE, _State.LAST_LINE})
_BEFORE_KEYS = frozenset({_State.OPEN, _State.COMMA, _State.SPACE, _State.FIRST_LINE, _State.NEW_LINE})
_LINE_ENDS = {_State.OPEN: _State.FIRST_LINE, _State.COMMA: _State.NEW_LINE, _State.VALUE: _State.LAST_LINE}


class _Unit(NamedTuple):
    """One step of indentation."""

    byte: int
    width: int


class _Walk:
    """JSON, byte by byte; `brackets` are those open."""

    __slots__ = ("brackets", "digits", "indented", "indented_by", "state", "unit")

    def __init__(self, state: _State, brackets: bytes) -> None:
        self.state = state
        self.brackets = bytearray(brackets)
        self.unit: _Unit | None = None
        self.digits = 0
        """In a row, outside of strings, at the end of what was written."""
        self.indented = 0
        """Bytes of the indentation that is being written."""
        self.indented_by = _SPACE

    @property
    def depth(self) -> int:
        """Steps by which a line is indented that begins here."""
        return len(self.brackets) - (self.state is _State.LAST_LINE)

    def feed(self, piece: bytes) -> bool:
        """Go on; False where a line ends at a place where no writer ends one."""
        if self.state in _IN_STRINGS and b'"' not in piece and b"\\" not in piece:
            return True
        fits = True
        for byte in piece:
            fits = self._byte(byte) and fits
        return fits

    def _byte(self, byte: int) -> bool:
        state, digits, self.digits = self.state, self.digits, 0
        if state in _LINES and byte not in _SPACES and self.unit is None and self.depth > 0:
            self.unit = _Unit(self.indented_by, self.indented // self.depth)
        if state in _IN_STRINGS:
            closed, escaped = _IN_STRINGS[state]
            self.state = closed if byte == 0x22 else escaped if byte == 0x5C else state
        elif state in _ESCAPED:
            self.state = _ESCAPED[state]
        elif byte == 0x0A:
            self.indented, self.indented_by = 0, _SPACE
            self.state = _LINE_ENDS.get(state, state)
            return state in _LINE_ENDS or not self.brackets
        elif byte in _SPACES:
            if state in _LINES:
                self.indented, self.indented_by = self.indented + 1, byte
            self.state = _State.SPACE if state is _State.COMMA else state
        elif byte == 0x2C:
            self.state = _State.COMMA
            return state is not _State.LAST_LINE
        elif byte in b"{[":
            self.brackets.append(byte)
            self.state = _State.OPEN
        else:
            return self._other(byte, digits)
        return True

    def _other(self, byte: int, digits: int) -> bool:
        if byte == 0x22 and self.brackets:  # outside of brackets there is text as well
            key = self.brackets[-1] == 0x7B and self.state in _BEFORE_KEYS
            self.state = _State.IN_KEY if key else _State.IN_TEXT
            return True
        if 0x30 <= byte <= 0x39:
            self.digits = digits + 1
        fits = True
        if byte in b"}]" and self.brackets:
            fits = self.state is not _State.FIRST_LINE
            self.brackets.pop()
        self.state = _State.COLON if byte == 0x3A else _State.VALUE
        return fits


class _Blanks:
    """Tokens by the blanks that they begin with, one kind of them."""

    def __init__(self, pieces: Sequence[bytes], byte: int) -> None:
        self._lead = np.zeros(len(pieces), dtype=np.int16)
        self._is_blank = np.zeros(len(pieces), dtype=np.bool_)
        self._goes_on = np.fromiter((piece[:1] not in (b"", b" ", b"\t") for piece in pieces), np.bool_, len(pieces))
        blank = bytes([byte])
        for token, piece in enumerate(pieces):
            if piece.startswith(blank):
                rest = piece.lstrip(blank)
                self._lead[token] = len(piece) - len(rest)
                self._is_blank[token], self._goes_on[token] = not rest, rest[:1] not in (b"", b" ", b"\t")

    def up_to(self, most: int, *, step: int = 0, written: int = 0) -> NDArray[np.bool_]:
        """`(n,) bool`: blanks of at most so many, and those with more behind exactly so many, or, with a step, behind
        any multiple of it together with what is written.
        """
        fits: NDArray[np.bool_] = self._lead <= most
        ends: NDArray[np.bool_] = fits & ((self._lead + written) % step == 0) if step else self._lead == most
        ends &= self._goes_on
        fits &= self._is_blank
        return fits | ends


class _LineEnds(NamedTuple):
    """Tokens with line ends, as ids, by what they do in one state: of those that may come, the lines they begin."""

    never: NDArray[np.intp]
    tokens: NDArray[np.intp]
    deeper: NDArray[np.int32]
    """How much deeper than here the line is."""
    width: NDArray[np.int32]
    """Its indentation so far."""
    byte: NDArray[np.int32]
    """Of what: 0 where none is written."""
    is_whole: NDArray[np.bool_]
    """Something stands behind the indentation."""
    is_first: NDArray[np.bool_]
    is_last: NDArray[np.bool_]


class LineTable:
    """One vocabulary's tokens with line ends; each question is answered once."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._ends = [token for token, piece in enumerate(pieces) if b"\n" in piece]
        self._commas = self._beginning(pieces, b",")
        self._closing = {opening: self._beginning(pieces, bytes([opening + 2])) for opening in b"{["}
        self._digits = np.fromiter((piece[:1].isdigit() for piece in pieces), np.bool_, len(pieces))
        self._space = np.fromiter((not piece.strip() for piece in pieces), np.bool_, len(pieces))
        self._blanks = {byte: _Blanks(pieces, byte) for byte in (_SPACE, _TAB)}
        self._known: dict[tuple[_State, int], _LineEnds] = {}

    @staticmethod
    def _beginning(pieces: Sequence[bytes], mark: bytes) -> NDArray[np.bool_]:
        return np.fromiter((piece.lstrip(b" \t").startswith(mark) for piece in pieces), np.bool_, len(pieces))

    def restrict(self, allowed: NDArray[np.bool_], walk: _Walk) -> None:
        """Take away what ends a line at the wrong place or indents it wrongly, in place; never all there is."""
        before = allowed.copy()
        ends = self._ends_from(walk.state, walk.brackets[-1])
        allowed[ends.never] = False
        self._restrict_new_lines(allowed, walk, ends)
        if walk.state in _LINES:
            self._restrict_line(allowed, walk)
        if not allowed.any():
            allowed[:] = before

    def end_number(self, allowed: NDArray[np.bool_]) -> None:
        """Take away what begins with a digit, in place; never all there is."""
        if (others := allowed & ~self._digits).any():
            allowed[:] = others

    def _restrict_new_lines(self, allowed: NDArray[np.bool_], walk: _Walk, ends: _LineEnds) -> None:
        """Of the tokens that begin a line those that indent it wrongly, or begin one where none can be."""
        if not ends.tokens.size or not allowed[ends.tokens].any():
            return
        closing = self._closing[walk.brackets[-1]]
        depth = len(walk.brackets) + ends.deeper
        wrong = np.zeros(len(ends.tokens), dtype=np.bool_)
        if walk.unit is None:
            unit = np.where(ends.byte == _TAB, _WIDEST_UNIT[_TAB], _WIDEST_UNIT[_SPACE])
            wrong |= (ends.width > unit * depth) | ends.is_last
            wrong |= ends.is_whole & (ends.width % np.maximum(depth, 1) != 0)
        else:
            width = walk.unit.width * depth
            wrong |= (ends.byte != 0) & (ends.byte != walk.unit.byte)
            wrong |= (ends.width > width) | (ends.is_whole & (ends.width != width)) | (width > _WIDEST[walk.unit.byte])
        if (ends.is_last & ~wrong).any() and not (allowed & closing).any():
            wrong |= ends.is_last
        if walk.state is _State.OPEN and not (allowed & ~closing & ~self._space).any():
            wrong |= ends.is_first & (ends.deeper == 0)
        allowed[ends.tokens[wrong]] = False

    def _restrict_line(self, allowed: NDArray[np.bool_], walk: _Walk) -> None:
        """What indents the line that has begun otherwise than its depth, and what does not belong there."""
        if walk.unit is None:
            kinds = [walk.indented_by] if walk.indented else [_SPACE, _TAB]
            fits = np.zeros(len(allowed), dtype=np.bool_)
            for byte in kinds:
                most = _WIDEST_UNIT[byte] * walk.depth - walk.indented
                fits |= self._blanks[byte].up_to(most, step=max(walk.depth, 1), written=walk.indented)
        else:
            fits = self._blanks[walk.unit.byte].up_to(walk.unit.width * walk.depth - walk.indented)
        allowed &= fits
        if walk.state is _State.LAST_LINE:
            allowed &= ~self._commas
        elif walk.state is _State.FIRST_LINE and (others := allowed & ~self._closing[walk.brackets[-1]]).any():
            allowed &= others

    def _ends_from(self, state: _State, bracket: int) -> _LineEnds:
        if (known := self._known.get((state, bracket))) is None:
            never: list[int] = []
            rows: list[tuple[int, int, int, int, bool, bool, bool]] = []
            for token in self._ends:
                row = self._row(token, state, bracket)
                if row is None:
                    never.append(token)
                else:
                    rows.append(row)
            table = np.array(rows, dtype=np.int32).reshape(len(rows), 7).T
            known = _LineEnds(
                np.array(never, dtype=np.intp), table[0].astype(np.intp), table[1], table[2], table[3], *(table[4:] > 0)
            )
            self._known[state, bracket] = known
        return known

    def _row(self, token: int, state: _State, bracket: int) -> tuple[int, int, int, int, bool, bool, bool] | None:
        """What a token would do; None where it may not come at all."""
        piece = self.pieces[token]
        head, _, rest = piece.partition(b"\n")
        walk = _Walk(state, b"[" + bytes([bracket]))
        if b"\n" in rest or not walk.feed(head + b"\n"):
            return None
        deeper = walk.depth - 2
        kind = walk.state
        width = len(rest) - len(rest.lstrip(b" \t"))
        indentation, behind = rest[:width], rest[width:]
        if len(set(indentation)) > 1 or not walk.feed(rest):
            return None
        if kind is _State.LAST_LINE and head.strip():  # whether the bracket may close there is not known
            return None
        byte = indentation[0] if indentation else 0
        return token, deeper, width, byte, bool(behind), kind is _State.FIRST_LINE, kind is _State.LAST_LINE


class JsonLines:
    """One text's: JSON from its beginning with `at_once`, and the arguments of the calls that this reader finds."""

    def __init__(self, table: LineTable, *, at_once: bool, calls: PieceReader | None = None) -> None:
        self._table = table
        self._calls = calls
        self._decoder = _utf8_decoder("replace")
        self._walk = _Walk(_State.VALUE, b"") if at_once else None
        self._in_call = False

    def restrict(self, allowed: NDArray[np.bool_]) -> None:
        """Take away, in place, what ends a line at the wrong place within brackets, and what makes numbers too long."""
        walk = self._walk
        if walk is not None and walk.digits >= _MAX_DIGITS:
            self._table.end_number(allowed)
        if walk is not None and walk.brackets:
            self._table.restrict(allowed, walk)

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
