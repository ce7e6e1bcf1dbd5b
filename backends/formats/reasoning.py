"""Streaming: takes the reasoning blocks at the start of a model's text apart from what follows them.

Pure; the same result however the text is cut. Line ends around the tags belong to the tags.
"""

from __future__ import annotations

import enum

from backends.formats.pieces import Content, Piece, Reasoning, held_back


class _State(enum.Enum):
    """`START -> REASONING -> AFTER -> CONTENT`; `START -> CONTENT` where the text does not open with the tag.

    `AFTER -> REASONING` where another block stands right behind the first.
    """

    START = enum.auto()
    REASONING = enum.auto()
    AFTER = enum.auto()
    CONTENT = enum.auto()


class ReasoningSplitter:
    """One choice's text; `marks` open and close a block, `opened` says that the prompt has already opened it."""

    def __init__(self, marks: tuple[str, str], *, opened: bool = False) -> None:
        self._open, self._close = marks
        self._state = _State.REASONING if opened else _State.START
        self._n_fed = 0
        self._held = ""
        self._spoke = self._spoke_before = False

    @property
    def reasons(self) -> bool:
        """A block is open."""
        return self._state is _State.REASONING

    @property
    def n_passed(self) -> int:
        """Characters of what was fed in front of which no further content begins."""
        return self._n_fed - len(self._held)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        if self._state is _State.CONTENT:
            self._n_fed += len(text)
            return [Content(text, self._n_fed - len(text))] if text else []
        return self.feed_until(text, reasoning=None)

    def feed_until(self, text: str, *, reasoning: bool | None) -> list[Piece]:
        """The same, but only until a block is open or not open, as `reasoning` says; `take` has the rest."""
        self._n_fed += len(text)
        self._held += text
        pieces: list[Piece] = []
        while (reasoning is None or self.reasons is not reasoning) and self._advance(pieces):
            pass
        return pieces

    def take(self) -> str:
        """What was fed and not looked at, to be fed again."""
        held, self._held = self._held, ""
        self._n_fed -= len(held)
        return held

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text: what was held back is what it looks like."""
        text, self._held = self._held, ""
        if self._state is _State.REASONING:
            text = text if self._spoke else text.lstrip("\n")
            return [Reasoning(text)] if text else []
        if self._state is _State.AFTER:
            text = text.lstrip("\n")
        return [Content(text, self._n_fed - len(text))] if text else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move; True while there may be another."""
        if self._state is _State.REASONING:
            return self._reason(pieces)
        if self._state is not _State.CONTENT:
            return self._look_for_a_block()
        if self._held:
            pieces.append(Content(self._held, self._n_fed - len(self._held)))
            self._held = ""
        return False

    def _look_for_a_block(self) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(self._open):
            self._held = stripped[len(self._open) :]
            self._state, self._spoke_before, self._spoke = _State.REASONING, self._spoke or self._spoke_before, False
            return True
        if self._open.startswith(stripped):
            return False
        if self._state is _State.AFTER:
            self._held = self._held.lstrip("\n")
        self._state = _State.CONTENT
        return True

    def _reason(self, pieces: list[Piece]) -> bool:
        if not self._spoke:
            self._held = self._held.lstrip("\n")
        end = self._held.find(self._close)
        if end >= 0:
            self._emit(pieces, self._held[:end].rstrip("\n"))
            self._held = self._held[end + len(self._close) :]
            self._state = _State.AFTER
            return True
        certain = self._held[: len(self._held) - held_back(self._held, self._close)].rstrip("\n")
        self._held = self._held[len(certain) :]
        self._emit(pieces, certain)
        return False

    def _emit(self, pieces: list[Piece], text: str) -> None:
        if text:
            joint = "\n\n" if self._spoke_before and not self._spoke else ""
            self._spoke = True
            pieces.append(Reasoning(joint + text))
