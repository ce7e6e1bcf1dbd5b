"""Streaming: takes tool calls out of a model's text, for every notation whose calls stand between marks.

Pure; the same result however the text is cut. A call is announced where its arguments begin, and they follow as they
come; what begins like a call and is none of an offered function stays text, as it was written.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jiter
import msgspec

from backends.formats.call_arguments import ArgumentsReader, JsonArguments, JsonScan
from backends.formats.openings import Match, Openings, Pattern, Place, asks_nothing
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, stretches

Json = dict[str, Any]


@dataclass(frozen=True)
class Notation:
    """How one family writes what follows the opening of a call."""

    arguments: Callable[[Json], ArgumentsReader] = lambda _properties: JsonArguments()
    """Made for each call from the properties that its function's schema names."""
    gaps: tuple[str, ...] = ()
    """What may stand behind a call, each once and in this order, with white space around it."""
    enclosed: bool = True
    """Arguments lie in an object with the name, whose rest has to be read."""

    def within(self, closing: str) -> Notation:
        """The same inside of a block of reasoning, whose own end may follow a call."""
        return replace(self, gaps=(*self.gaps, closing))


class _State(enum.Enum):
    """`TEXT -> [TURNED ->] ARGUMENTS -> [CLOSING ->] AFTER -> ... -> TEXT`."""

    TEXT = enum.auto()
    TURNED = enum.auto()
    ARGUMENTS = enum.auto()
    CLOSING = enum.auto()
    AFTER = enum.auto()


class CallReader:
    """One choice's text; `new_id` names the calls, `tools` are those offered: None takes any name.

    `alone`: a text that does not begin with a call holds none.
    """

    def __init__(
        self,
        notation: Notation,
        openings: Openings,
        *,
        new_id: Callable[[], str],
        tools: Sequence[Json] | None = None,
        alone: bool = False,
    ) -> None:
        self._notation = notation
        self._openings = openings
        self._new_id = new_id
        functions = [tool.get("function", tool) for tool in tools or ()]
        self._properties = {f["name"]: (f.get("parameters") or {}).get("properties") or {} for f in functions}
        self._names = None if tools is None else list(self._properties)
        unasking = [function["name"] for function in functions if asks_nothing(function.get("parameters"))]
        self._unasking = None if tools is None else unasking
        self._alone = alone
        self._state = _State.TEXT
        self._n_fed = 0
        self._held = ""
        self._at_start = True
        self._is_text = False
        """No call is to be looked for."""
        self._after_call = False
        self._gaps: tuple[str, ...] = ()
        """Those that may still come behind the last call."""
        self._is_closed = False
        """One of them has come."""
        self._scan = JsonScan()
        self._scanned = self._object_at = 0
        self._arguments: ArgumentsReader = JsonArguments()
        self.n_calls = 0
        self.is_cut = False
        """See `PieceReader`."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        pieces: list[Piece] = []
        moves = {
            _State.TEXT: self._text,
            _State.TURNED: self._turned,
            _State.ARGUMENTS: self._read_arguments,
            _State.CLOSING: self._close,
            _State.AFTER: self._after,
        }
        for stretch in stretches(text):
            self._n_fed += len(stretch)
            self._held += stretch
            while moves[self._state](pieces):
                pass
        return pieces

    def flush(self, *, cut: bool) -> list[Piece]:
        """See `PieceReader`."""
        pieces: list[Piece] = []
        if self._state in (_State.TURNED, _State.TEXT, _State.AFTER):
            if cut:
                self._cut_short(pieces)
            if self._held and not (self._after_call and not self._held.strip()):
                self._say(pieces, self._held)
        else:
            self.is_cut = self._state is _State.ARGUMENTS
        self._held = ""
        return pieces

    @property
    def n_passed(self) -> int:
        """See `PieceReader`."""
        return self._n_fed - len(self._held)

    def _cut_short(self, pieces: list[Piece]) -> None:
        """Of a call that has only begun there is its name, where that is whole, and nothing else."""
        if self._state is _State.TURNED:
            self._held, self.is_cut = "", True
        elif self._state is _State.AFTER:
            if self._held.strip() and (begun := self._another()) is not None:
                self._break_off(pieces, begun)
            elif any(gap.startswith(self._held.strip()) for gap in self._gaps):
                self._held = ""
        elif not self._is_text:
            marked = not self._may_be_bare or self._held.lstrip()[:1] not in ("", "{")
            at, begun = self._place()
            if begun is not None and (marked or begun.name is not None):
                self._say(pieces, self._held[:at].rstrip())
                self._break_off(pieces, begun)

    def _break_off(self, pieces: list[Piece], begun: Match) -> None:
        self._held, self.is_cut = "", True
        if begun.name is not None:
            self._announce(pieces, begun.name)

    def _content(self, text: str) -> Content:
        """What was written right before what is held now."""
        return Content(text, self._n_fed - len(self._held) - len(text))

    def _say(self, pieces: list[Piece], text: str) -> None:
        """What is held begins with this text outside calls; the space around a call is layout."""
        if text:
            self._held = self._held[len(text) :]
            pieces.append(self._content(text.lstrip() if self._after_call else text))
            self._after_call = False

    @property
    def _may_be_bare(self) -> bool:
        return self._at_start and self._openings.bare is not None

    def _place(self) -> Place:
        """Where a call begins, or may begin."""
        if self._at_start and (self._alone or self._may_be_bare):
            space = len(self._held) - len(self._held.lstrip())
            anchored = [(0, self._openings.bare)] if self._openings.bare is not None else []
            anchored += [(space, pattern) for pattern in self._openings.anywhere]
            for at, pattern in anchored:
                if pattern is not None and (found := self._match(pattern, at)) is not None:
                    return Place(at, found)
            self._at_start = False
            self._is_text = self._alone
        if self._is_text:
            return Place(len(self._held), None)
        return self._openings.find(self._held, self._names, self._unasking)

    def _match(self, pattern: Pattern, at: int) -> Match | None:
        return self._openings.match(pattern, self._held, at, self._names, self._unasking)

    def _text(self, pieces: list[Piece]) -> bool:
        if not self._held:
            return False
        at, found = self._place()
        before = self._held[:at] if self._is_text else self._held[:at].rstrip()
        self._say(pieces, before)
        if found is None or not found.whole:
            return False
        self._at_start = False
        if found.name is not None:
            self._begin(pieces, found.name, found.end - len(before))
        else:
            self._scan, self._scanned = JsonScan(), self._held.index("{", at - len(before))
            self._object_at = self._scanned
            self._state = _State.TURNED
        return True

    def _turned(self, pieces: list[Piece]) -> bool:
        """A call whose name comes last is taken when it is whole."""
        end = self._scan.end(self._held[self._scanned :])
        if end < 0:
            self._scanned = len(self._held)
            return False
        end += self._scanned
        call = read_call(self._held[self._object_at : end])
        if call is None or not (self._names is None or call[0] in self._names):
            self._state = _State.TEXT
            self._say(pieces, self._held[: self._object_at + 1])
            return True
        self._held = self._held[end:]
        self._announce(pieces, call[0])
        pieces.append(CallArguments(self.n_calls - 1, call[1]))
        self._state = _State.AFTER
        return True

    def _begin(self, pieces: list[Piece], name: str, end: int) -> None:
        """What is held up to this place has opened a call, or is the whole of one."""
        is_whole = self._held[end - 1] == "}"
        self._held = self._held[end:]
        self._announce(pieces, name)
        if is_whole:
            pieces.append(CallArguments(self.n_calls - 1, "{}"))
            self._state = _State.AFTER

    def _announce(self, pieces: list[Piece], name: str) -> None:
        pieces.append(CallBegins(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        self._after_call = True
        self._gaps, self._is_closed = self._notation.gaps, False
        self._arguments = self._notation.arguments(self._properties.get(name, {}))
        self._state = _State.ARGUMENTS

    def _read_arguments(self, pieces: list[Piece]) -> bool:
        out, used = self._arguments.feed(self._held)
        if out:
            pieces.append(CallArguments(self.n_calls - 1, out))
        if used < 0:
            self._held = ""
            return False
        self._held = self._held[used:]
        self._state = _State.CLOSING if self._notation.enclosed else _State.AFTER
        self._scan = JsonScan(depth=1)
        return True

    def _close(self, _pieces: list[Piece]) -> bool:
        """The rest of the object around the arguments says nothing."""
        end = self._scan.end(self._held)
        if end < 0:
            self._held = ""
            return False
        self._held = self._held[end:]
        self._state = _State.AFTER
        return True

    def _another(self) -> Match | None:
        """One more call right behind the last one, or what may become one."""
        if self._is_closed or self._openings.more is None:
            return None
        return self._match(self._openings.more, 0)

    def _after(self, pieces: list[Piece]) -> bool:
        """Behind a call: another one, or what closes it."""
        if (found := self._another()) is not None:
            if found.whole and found.name is not None:
                self._begin(pieces, found.name, found.end)
            return found.whole
        stripped = self._held.lstrip()
        for i, gap in enumerate(self._gaps):
            if stripped.startswith(gap):
                self._held = stripped[len(gap) :]
                self._gaps, self._is_closed = self._gaps[i + 1 :], True
                return True
        if any(gap.startswith(stripped) for gap in self._gaps):
            return False
        self._state = _State.TEXT
        return True


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
