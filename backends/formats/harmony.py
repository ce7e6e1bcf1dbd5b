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
_ENDS = (END, START, "<|call|>", "<|return|>")
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
        self._held = ""
        self._make: Callable[[str], Piece] = Content
        self._scan: JsonScan | None = None
        """In a call: finds the end of its arguments, in which the marks are text."""
        self.n_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
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

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text."""
        text, self._held = self._held, ""
        if not text or self._state is _State.HEADER:
            return []
        return [self._make(text)]

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
        if self._held:
            pieces.append(Content(self._held))
            self._held = ""
        return False

    def _header(self, pieces: list[Piece]) -> bool:
        head, mark, rest = self._held.partition(MESSAGE)
        if not mark:
            return False
        self._held = rest
        channel, recipient = _CHANNEL.search(head), _RECIPIENT.search(head)
        if recipient is not None:
            number = self.n_calls
            self.n_calls += 1
            pieces.append(CallBegins(number, self._new_id(), recipient[1]))
            self._make = lambda text: CallArguments(number, text)
            self._scan = JsonScan()
        else:
            self._scan = None
            self._make = Reasoning if channel is not None and channel[1] == "analysis" else Content
        self._state = _State.BODY
        return True

    def _body(self, pieces: list[Piece]) -> bool:
        if self._scan is not None:
            return self._arguments(self._scan, pieces)
        at, mark = first_of(self._held, _ENDS)
        cut = at if at >= 0 else len(self._held) - held_back(self._held, *_ENDS)
        if cut:
            pieces.append(self._make(self._held[:cut]))
        self._held = self._held[cut + len(mark) :]
        if at >= 0:
            self._state = _State.HEADER
        return at >= 0

    def _arguments(self, scan: JsonScan, pieces: list[Piece]) -> bool:
        end = scan.end(self._held)
        cut = end if end >= 0 else len(self._held)
        if cut:
            pieces.append(self._make(self._held[:cut]))
        self._held = self._held[cut:]
        if end >= 0:
            self._state = _State.HEADER
        return end >= 0


def _reader(new_id: Callable[[], str], _tools: Sequence[Json]) -> HarmonyReader:
    return HarmonyReader(new_id)


FORMAT = Format(
    name="harmony",
    fits=lambda template: CHANNEL in template and MESSAGE in template,
    rules=rules,
    reader=_reader,
    marks=(CHANNEL, MESSAGE, END, START, "<|constrain|>"),
    text_opening=f"({quoted(START + 'assistant')})? {quoted(FINAL)}",
    reasons=True,
)
