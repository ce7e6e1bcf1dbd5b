"""gpt-oss: each part of an answer has a channel: reasoning in `analysis`, calls in `commentary`, text in `final`.

A call is `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}` and then the token `<|call|>`,
which ends the answer and is no part of its text.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence

from backends.formats.base import Format, Json, Rules, inline, parameters, quoted
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning, first_of, held_back
from backends.formats.reading import JsonScan
from backends.messages import Function

CHANNEL, MESSAGE, END, START = "<|channel|>", "<|message|>", "<|end|>", "<|start|>"
FINAL = f"{CHANNEL}final{MESSAGE}"
_ENDS = (END, START, CHANNEL, "<|call|>", "<|return|>")
_RECIPIENT = re.compile(r"to=(?:functions\.)?([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_MAX_HEADER_CHARS = 512


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """One call ends the answer, so there is never a second one; words to the user may stand before it."""
    del parallel
    calls = [
        f"call{i}: {quoted(f'{function.name} <|constrain|>json{MESSAGE}')} {inline(parameters(function))}"
        for i, function in enumerate(functions)
    ]
    either = " | ".join(f"call{i}" for i in range(len(functions)))
    trigger = f"{CHANNEL}commentary to=functions."
    words = f"{quoted(f'{CHANNEL}commentary{MESSAGE}')} words {quoted(f'{START}assistant')}"
    lark = [
        f"calls: {quoted(START + 'assistant')}? ({words})? {quoted(trigger)} ({either})",
        r"words[lazy]: /(?s:.*)<\|end\|>/",
        *calls,
        "",
    ]
    return Rules(calls="\n".join(lark))


class _State(enum.Enum):
    """`OPENING -> HEADER -> BODY -> HEADER ...`; `OPENING -> PLAIN` for a text without channels."""

    OPENING = enum.auto()
    HEADER = enum.auto()
    BODY = enum.auto()
    PLAIN = enum.auto()


class HarmonyReader:
    """One choice's text, channels, reasoning and calls apart."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._state = _State.OPENING
        self._n_fed = 0
        self._held = ""
        self._make: Callable[[str, int], Piece] = Content
        self._scan: JsonScan | None = None
        """In a call: finds the end of its arguments, in which the marks are text."""
        self.n_calls = 0
        self.is_cut = False
        """See `Reader`."""

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._n_fed += len(text)
        self._held += text
        pieces: list[Piece] = []
        moves = {
            _State.OPENING: self._open,
            _State.HEADER: self._header,
            _State.BODY: self._body,
            _State.PLAIN: self._plain,
        }
        while moves[self._state](pieces):
            pass
        return pieces

    def flush(self, *, cut: bool) -> list[Piece]:
        """See `Reader`."""
        pieces: list[Piece] = []
        if self._state is _State.HEADER:
            self._cut_header(pieces, cut=cut)
        elif self._held:
            self._say(pieces, len(self._held))
        self.is_cut = self.is_cut or (self._state is _State.BODY and self._scan is not None)
        return pieces

    @property
    def n_passed(self) -> int:
        """See `Reader`."""
        return self._n_fed - len(self._held)

    def _cut_header(self, pieces: list[Piece], *, cut: bool) -> None:
        """A call without arguments, where its name is certainly whole."""
        recipient = _RECIPIENT.search(self._held)
        self.is_cut = cut and recipient is not None
        if cut and recipient is not None and recipient.end() < len(self._held):
            self._announce(pieces, recipient[1])

    def _say(self, pieces: list[Piece], n: int) -> None:
        """The first `n` characters that are held."""
        if n:
            pieces.append(self._make(self._held[:n], self._n_fed - len(self._held)))
            self._held = self._held[n:]

    def _open(self, _pieces: list[Piece]) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith((CHANNEL, START)):
            self._state = _State.HEADER
        elif any(mark.startswith(stripped) for mark in (CHANNEL, START)):
            return False
        else:
            self._state = _State.PLAIN
        return True

    def _plain(self, pieces: list[Piece]) -> bool:
        self._say(pieces, len(self._held))
        return False

    def _header(self, pieces: list[Piece]) -> bool:
        head, mark, rest = self._held.partition(MESSAGE)
        if not mark:
            return False
        self._held = rest
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        if recipient is not None:
            number = self._announce(pieces, recipient[1])
            self._make = lambda text, _: CallArguments(number, text)
            self._scan = JsonScan()
        else:
            self._scan = None
            self._make = _reasoning if channel is not None and channel[1] == "analysis" else Content
        self._state = _State.BODY
        return True

    def _announce(self, pieces: list[Piece], name: str) -> int:
        """The call's number."""
        pieces.append(CallBegins(self.n_calls, self._new_id(), name))
        self.n_calls += 1
        return self.n_calls - 1

    def _body(self, pieces: list[Piece]) -> bool:
        if self._scan is not None:
            return self._arguments(self._scan, pieces)
        at, mark = first_of(self._held, _ENDS)
        cut = at if at >= 0 else len(self._held) - held_back(self._held, *_ENDS)
        self._say(pieces, cut)
        self._held = self._held[0 if mark == CHANNEL else len(mark) :]  # a channel's mark belongs to the next header
        if at >= 0:
            self._state = _State.HEADER
        return at >= 0

    def _arguments(self, scan: JsonScan, pieces: list[Piece]) -> bool:
        end = scan.end(self._held)
        self._say(pieces, end if end >= 0 else len(self._held))
        if end >= 0:
            self._state = _State.HEADER
        return end >= 0


def _reasoning(text: str, _at: int) -> Reasoning:
    return Reasoning(text)


def _reader(new_id: Callable[[], str], _tools: Sequence[Json], _closing: str) -> HarmonyReader:
    return HarmonyReader(new_id)


FORMAT = Format(
    name="harmony",
    fits=lambda template: CHANNEL in template and MESSAGE in template,
    rules=rules,
    reader=_reader,
    answer_marks=(START, CHANNEL),
    json_begins=" to=functions.",
    marks=(CHANNEL, MESSAGE, END, START, "<|constrain|>"),
    text_opening=f"({quoted(START + 'assistant')})? {quoted(FINAL)}",
    reasons=True,
)
