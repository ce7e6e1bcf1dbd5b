"""Of the tokens of one choice, those that wrote its content, each with the bytes it wrote of it. Pure.

Reasoning, calls, marks and the space around them have tokens, too; one token may hold the end of one and the beginning
of the other. Joined, the bytes are the content.
"""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import TokenLogprob

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(slots=True, eq=False)
class _Writer:
    """One token; `end` is the character behind the last one that it has a part in."""

    token: TokenLogprob
    end: int = 0
    wrote: bytearray = field(default_factory=bytearray)
    """Its bytes in the content that were not told yet."""

    def told(self) -> list[TokenLogprob]:
        """The token with what it wrote of the content; none where that is nothing."""
        wrote, self.wrote = bytes(self.wrote), bytearray()
        return [msgspec.structs.replace(self.token, bytes=wrote)] if wrote else []


class ContentTokens:
    """Tokens come in with `add`; content is named by its place in the text, in order. The text may be ahead of them."""

    def __init__(self) -> None:
        self._decoder = _utf8_decoder("replace")
        self._half: list[tuple[_Writer, int]] = []
        """The bytes of a character that is not whole yet."""
        self._characters: deque[list[tuple[_Writer, int]]] = deque()
        """Who wrote each character that was not passed yet, byte by byte."""
        self._n_passed = 0
        self._writers: deque[_Writer] = deque()
        self._wanted: deque[tuple[int, int]] = deque()

    def add(self, tokens: Sequence[TokenLogprob]) -> None:
        """The tokens of one more delta."""
        for token in tokens:
            writer = _Writer(token)
            for byte in token.bytes:
                self._write(writer, byte)
            writer.end = self._n_passed + len(self._characters) + bool(self._half)
            self._writers.append(writer)

    def _write(self, writer: _Writer, byte: int) -> None:
        characters = self._decoder.decode(bytes([byte]))
        if len(characters) > 1 or (characters and self._decoder.getstate()[0]):  # what was begun is no character
            self._characters.append(self._half)
            self._half = []
            characters = characters[1:]
        self._half.append((writer, byte))
        if characters:
            self._characters.append(self._half)
            self._half = []

    def of(self, at: int, length: int) -> list[TokenLogprob]:
        """The text has content of `length` characters at `at`: the tokens with which it comes to their end."""
        self._wanted.append((at, at + length))
        self._pass()
        return self._done()

    def rest(self) -> list[TokenLogprob]:
        """No content follows right behind what was named: the last token that has written some of it."""
        self._pass()
        return self._done(started=True)

    def skip_to(self, at: int) -> None:
        """No content that was not named begins before `at`: who wrote the rest of it need not be known."""
        self._wanted.append((at, at))
        self._pass()

    def _pass(self) -> None:
        """Go through what is wanted, as far as its tokens are known."""
        while self._wanted:
            begin, end = self._wanted[0]
            while self._characters and self._n_passed < end:
                letters = self._characters.popleft()
                for writer, byte in letters if self._n_passed >= begin else ():
                    writer.wrote.append(byte)
                self._n_passed += 1
            if self._n_passed < end:
                return
            self._wanted.popleft()

    def _done(self, *, started: bool = False) -> list[TokenLogprob]:
        """The writers of content that have no part in what was not passed yet, and with `started` the one that has."""
        done = []
        while self._writers and self._writers[0].end <= self._n_passed:
            done += self._writers.popleft().told()
        return done + self._writers[0].told() if started and self._writers else done
