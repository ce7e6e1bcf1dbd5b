"""gpt-oss: each part of an answer has a channel: reasoning in `analysis`, calls in `commentary`, text in `final`.

A call is `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}` and then the token `<|call|>`,
which ends the answer and is no part of its text.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

from backends.formats.base import Format, Json, Rules, arguments_of
from backends.formats.call_arguments import JsonScan
from backends.formats.openings import BRACE, NAME, SPACE, WORD, Match, Openings, either, match, maybe, regex
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning, first_of, held_back, stretches
from backends.messages import Function

CHANNEL, MESSAGE, END, START = "<|channel|>", "<|message|>", "<|end|>", "<|start|>"
FINAL, PREAMBLE = f"{CHANNEL}final{MESSAGE}", f"{CHANNEL}commentary{MESSAGE}"
_CLOSING = (END, "<|call|>", "<|return|>")
_BEGINNING = (CHANNEL, START)
_ROLE = (START, "assistant")
_ASSISTANT = (maybe(*_ROLE),)
_TO = (SPACE, "to=", maybe("functions."), NAME)
_TYPE = (SPACE, maybe(maybe("<|constrain|>"), WORD), SPACE, MESSAGE)
_SAYS = (CHANNEL, SPACE, either("analysis", "commentary", "final"), *_TYPE)
_PART = (either(_SAYS, (*_ROLE, *_SAYS)),)
_WORKS = (CHANNEL, SPACE, either("commentary", "analysis"))
_CALLS = (*_WORKS, *_TO, *_TYPE)
_CALL = (either(_CALLS, (*_ROLE, either(_CALLS, (*_TO, *_WORKS, *_TYPE)))), SPACE, BRACE)
"""The recipient stands before the channel or behind it."""


def rules(functions: Sequence[Function], _parallel: bool) -> Rules:
    """One call ends the answer, so there is never a second one; words to the user may stand before it."""
    return Rules(
        bodies=[f"args{i}" for i in range(len(functions))],
        lines=[
            *arguments_of(functions),
            f"WORDS: /{regex(_ASSISTANT)}{regex((PREAMBLE,))}([^<]|<[^|])*<\\|end\\|>/",
        ],
        once=True,
        before="WORDS?",
    )


class _State(enum.Enum):
    """`BETWEEN -> BODY -> BETWEEN ...`, and `ARGUMENTS` for the body of a call."""

    BETWEEN = enum.auto()
    BODY = enum.auto()
    ARGUMENTS = enum.auto()


class HarmonyReader:
    """One choice's text, channels, reasoning and calls apart. What is no part's beginning is text of the last one."""

    def __init__(
        self,
        new_id: Callable[[], str],
        tools: Sequence[Json] | None = None,
        alone: bool = False,
        opened: bool = False,
    ) -> None:
        self._new_id = new_id
        self._names = None if tools is None else [tool.get("function", tool)["name"] for tool in tools]
        self._alone = alone
        self._is_last = False
        """The part that the answer ends with, whatever is written in it."""
        self._state = _State.BODY if opened else _State.BETWEEN
        self._n_fed = 0
        self._held = ""
        self._has_reasoned = False
        self._make: Callable[[str, int], Piece] = self._reasoning() if opened else Content
        self._layout = ""
        """White space that belongs to the marks before it."""
        self._scan = JsonScan()
        """In a call: finds the end of its arguments, in which the marks are text."""
        self.n_calls = 0
        self.is_cut = False
        """See `PieceReader`."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        pieces: list[Piece] = []
        moves = {_State.BETWEEN: self._between, _State.BODY: self._body, _State.ARGUMENTS: self._arguments}
        for stretch in stretches(text):
            self._n_fed += len(stretch)
            self._held += stretch
            while moves[self._state](pieces):
                pass
        return pieces

    def flush(self, *, cut: bool) -> list[Piece]:
        """See `PieceReader`."""
        pieces: list[Piece] = []
        if self._state is _State.ARGUMENTS:
            self.is_cut = True
            return pieces
        text = self._held.lstrip()
        mark = next((mark for mark in _CLOSING if text.startswith(mark)), "")
        begun = self._call(text[len(mark) :].lstrip())
        if cut and text.startswith((*_BEGINNING, *_CLOSING)):
            self._held = ""
            self.is_cut = begun is not None and "to=" in text
            if begun is not None and begun.name is not None:
                self._announce(pieces, begun.name)
        elif mark and not text[len(mark) :].strip():
            self._held = ""
        elif self._layout and self._state is _State.BETWEEN:
            self._held = self._held.lstrip(self._layout) if text else ""
        self._say(pieces, len(self._held))
        return pieces

    @property
    def n_passed(self) -> int:
        """See `PieceReader`."""
        return self._n_fed - len(self._held)

    def _say(self, pieces: list[Piece], n: int) -> None:
        """The first `n` characters that are held."""
        if n:
            pieces.append(self._make(self._held[:n], self._n_fed - len(self._held)))
            self._held = self._held[n:]

    def _call(self, text: str) -> Match | None:
        return match(_CALL, text, 0, self._names)

    def _between(self, _pieces: list[Piece]) -> bool:
        """Before the first part, or behind one that has ended: where no other begins, there is text."""
        stripped = self._held.lstrip()
        if not stripped or (self._layout and any(mark.startswith(stripped) for mark in _CLOSING)):
            return False
        if self._layout and (mark := next((mark for mark in _CLOSING if stripped.startswith(mark)), "")):
            self._held = stripped[len(mark) :]
            return True
        if any(mark.startswith(stripped) for mark in _BEGINNING):
            return False
        if stripped.startswith(_BEGINNING):
            begun = self._begin(stripped)
            if begun is None:
                return False
            if begun:
                self._held = stripped
        self._held = self._held.lstrip(self._layout) if self._layout else self._held
        self._state = _State.BODY
        return True

    def _begin(self, text: str) -> bool | None:
        """Whether a part begins with this mark; None where that is not certain yet."""
        found = [self._call(text), match(_PART, text, 0, ())]
        if any(one is not None and one.whole for one in found):
            return True
        return None if any(one is not None for one in found) else False

    def _body(self, pieces: list[Piece]) -> bool:
        at, mark = (-1, "") if self._is_last else first_of(self._held, (*_BEGINNING, *_CLOSING))
        keep = 0 if self._is_last else held_back(self._held, *_BEGINNING, *_CLOSING)
        n = at if at >= 0 else len(self._held) - keep
        if not self._is_last:  # space before a mark is layout
            n = len(self._held[:n].rstrip())
        self._say(pieces, n)
        if at < 0:
            return False
        return self._close(pieces, at - n, mark) if mark in _CLOSING else self._open(pieces, at - n, mark)

    def _close(self, pieces: list[Piece], at: int, mark: str) -> bool:
        """A mark that ends a part: reasoning always, text only where nothing or another part follows."""
        rest = self._held[at + len(mark) :]
        if self._make is Content:
            stripped = rest.lstrip()
            if not stripped or any(begins.startswith(stripped) for begins in _BEGINNING):
                return False
            begun = self._begin(stripped) if stripped.startswith(_BEGINNING) else False
            if begun is None:
                return False
            if not begun:
                self._say(pieces, at + len(mark))
                return True
        self._held, self._make, self._layout, self._state = rest, Content, "\n", _State.BETWEEN
        return True

    def _open(self, pieces: list[Piece], at: int, mark: str) -> bool:
        call, part = match(_CALL, self._held, at, self._names), match(_PART, self._held, at, ())
        if call is not None and call.whole and call.name is not None:
            self._held = self._held[call.end :]
            number = self._announce(pieces, call.name)
            self._make = lambda text, _: CallArguments(number, text)
            self._scan, self._state = JsonScan(), _State.ARGUMENTS
            return True
        if part is not None and part.whole:
            head, self._held = self._held[: part.end], self._held[part.end :]
            self._make = self._reasoning() if "analysis" in head else Content
            self._is_last = self._alone and "final" in head
            return True
        if call is not None or part is not None:
            return False
        self._say(pieces, at + len(mark))
        return True

    def _reasoning(self) -> Callable[[str, int], Piece]:
        """Makes the pieces of one more block, the first of them with what parts it from the last block."""
        joints = ["\n\n"] if self._has_reasoned else []
        self._has_reasoned = True
        return lambda text, _: Reasoning((joints.pop() if joints else "") + text)

    def _announce(self, pieces: list[Piece], name: str) -> int:
        """The call's number."""
        pieces.append(CallBegins(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        return self.n_calls - 1

    def _arguments(self, pieces: list[Piece]) -> bool:
        end = self._scan.end(self._held)
        self._say(pieces, end if end >= 0 else len(self._held))
        if end >= 0:
            self._make, self._layout, self._state = Content, "\n", _State.BETWEEN
        return end >= 0


FORMAT = Format(
    name="harmony",
    fits=lambda template: CHANNEL in template and MESSAGE in template,
    openings=Openings(marked=_CALL),
    rules=rules,
    reader=HarmonyReader,
    answer_marks=(START, CHANNEL),
    answer_openings=(FINAL, PREAMBLE),
    marks=(CHANNEL, MESSAGE, END, START, "<|constrain|>"),
    text_opening=f"/{regex((*_ASSISTANT, FINAL))}/",
    reasons=True,
)
