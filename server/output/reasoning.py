"""Streaming: takes a reasoning block at the start of a model's text apart from what follows it.

Pure; the same result however the text is cut. Line ends around the tags belong to the tags.
"""

from __future__ import annotations

import enum

from backends.formats.pieces import Content, Piece, Reasoning, held_back


class _State(enum.Enum):
    """`START -> REASONING -> AFTER -> CONTENT`; `START -> CONTENT` where the text does not open with the tag."""

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
        self._spoke = False

    @property
    def n_passed(self) -> int:
        """Characters of what was fed in front of which no further content begins."""
        return self._n_fed - len(self._held)

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._n_fed += len(text)
        if self._state is _State.CONTENT:
            return [Content(text, self._n_fed - len(text))] if text else []
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text: what was held back is what it looks like."""
        text, self._held = self._held, ""
        if self._state is _State.REASONING:
            text = text if self._spoke else text.lstrip("\n")
            return [Reasoning(text)] if text else []
        if self._state is _State.AFTER:
            return []
        return [Content(text, self._n_fed - len(text))] if text else []

    def _advance(self, pieces: list[Piece]) -> bool:
        """One move; True while there may be another."""
        if self._state is _State.START:
            return self._start(pieces)
        if self._state is _State.REASONING:
            return self._reason(pieces)
        if self._state is _State.AFTER:
            self._held = self._held.lstrip("\n")
            if not self._held:
                return False
        self._state = _State.CONTENT
        self._pass(pieces)
        return False

    def _pass(self, pieces: list[Piece]) -> None:
        """All that is held is content."""
        if self._held:
            pieces.append(Content(self._held, self._n_fed - len(self._held)))
            self._held = ""

    def _start(self, pieces: list[Piece]) -> bool:
        stripped = self._held.lstrip()
        if stripped.startswith(self._open):
            self._held = stripped[len(self._open) :]
            self._state = _State.REASONING
            return True
        if self._open.startswith(stripped):
            return False
        self._state = _State.CONTENT
        self._pass(pieces)
        return False

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
            self._spoke = True
            pieces.append(Reasoning(text))
