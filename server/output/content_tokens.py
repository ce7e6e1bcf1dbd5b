"""Of the tokens of one choice, those that wrote its content: reasoning, calls and marks have tokens, too. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import TokenLogprob


class ContentTokens:
    """Tokens come in with `add`, pieces of the same text are asked for in order."""

    def __init__(self) -> None:
        self._waiting: list[TokenLogprob] = []

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        """The tokens of one more delta."""
        self._waiting += tokens

    def of(self, text: str) -> list[TokenLogprob]:
        """The tokens that wrote this piece; those before it are forgotten.

        Where they cannot be told, because a token of an earlier piece holds the beginning, it is all that wait.
        """
        wanted = text.encode("utf-8", "replace")
        begin = b"".join([token.bytes for token in self._waiting]).find(wanted)
        end = begin + len(wanted)
        if begin < 0:
            written, self._waiting = self._waiting, []
            return written
        written, offset, n_passed = [], 0, 0
        for token in self._waiting:
            if offset >= end:
                break
            offset += len(token.bytes)
            n_passed += 1
            if offset > begin:
                written.append(token)
        self._waiting = self._waiting[n_passed:]
        return written
