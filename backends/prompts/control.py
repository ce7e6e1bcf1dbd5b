"""Control tokens, and plain text that must not hold any."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_LOOKS_LIKE_ONE: Final = re.compile(r"<\|.*\|>|<｜.*｜>|<\|\w+>|<\w+\|>|<(start|end)_of_turn>")
"""Tokens that begin and end turns of well-known models and are not marked so (DeepSeek's, Dolphin's, Gemma's)."""


@dataclass(frozen=True, slots=True)
class Control:
    """A token that only a template or a raw prompt may write: its id, its literal, and the white space it swallows."""

    token: int
    literal: str
    strips_left: bool
    strips_right: bool


def looks_like_one(literal: str) -> bool:
    """Whether a token that is found in any text is named like a control token."""
    return _LOOKS_LIKE_ONE.fullmatch(literal) is not None


class PlainText:
    """Ordinary tokens in place of control tokens that a tokenizer has made of plain text.

    Most never do. Unigram, SentencePiece's merges and whole words know a control token as one more piece, and what is
    not marked as one is looked for everywhere.
    """

    def __init__(
        self, controls: Iterable[Control], *, unknown: int | None, pieces: Callable[[], Sequence[bytes]]
    ) -> None:
        """`unknown` stands for what no token spells and is no control token here; `pieces` are all tokens' bytes."""
        self._literals = {c.token: c.literal.encode() for c in controls if c.token != unknown}
        self._unknown = unknown
        self._pieces = pieces
        self._by_piece: dict[bytes, int] = {}

    def __call__(self, tokens: list[int]) -> list[int]:
        """The same text without control tokens."""
        if self._literals.keys().isdisjoint(tokens):
            return tokens
        plain: list[int] = []
        for token in tokens:
            literal = self._literals.get(token)
            plain += (token,) if literal is None else self._spelled(literal)
        return plain

    def _spelled(self, text: bytes) -> list[int]:
        """The longest pieces one after another."""
        if not self._by_piece:
            kept = (self._literals.keys() | {self._unknown}) if self._unknown is not None else self._literals.keys()
            self._by_piece = {piece: token for token, piece in enumerate(self._pieces()) if token not in kept}
        tokens: list[int] = []
        at = 0
        while at < len(text):
            end = next((end for end in range(len(text), at, -1) if text[at:end] in self._by_piece), None)
            found = self._unknown if end is None else self._by_piece[text[at:end]]
            if found is not None:
                tokens.append(found)
            at = at + 1 if end is None else end
        return tokens
