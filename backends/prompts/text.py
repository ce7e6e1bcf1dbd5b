"""From token pieces to text a client may see: whole UTF-8 characters, and nothing of a stop string.

Pure. One `TextStream` per choice; it knows no tokens, only their bytes. A client's stop strings are about the
answer: where a text holds reasoning and calls beside it, they are held against the content alone.
"""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from backends.formats.pieces import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.formats.pieces import Piece as Sorted
    from backends.formats.splitter import Splitter
    from backends.messages import TokenLogprob

_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Piece(NamedTuple):
    """What one `push` or `flush` released."""

    text: str
    logprobs: list[TokenLogprob]
    stopped_by: str | None


@dataclass(slots=True)
class TextStream:
    """Turns pieces into text, holding back half characters and whatever may yet become a stop string.

    Matching costs O(new text + longest stop) per push. Invalid bytes become U+FFFD.
    """

    stops: Sequence[str] = ()
    keep_logprobs: bool = False
    sorts: Splitter | None = None
    """Tells content from reasoning and calls; None where all of the text is content."""
    _run: str = ""
    """The end of the content so far that may become a stop string; what is no content ends it."""
    _run_at: int = 0
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: _utf8_decoder("replace"))
    _held: str = ""
    _released: int = 0
    _decoded: int = 0
    _halved: bool = False
    """The decoder holds the first bytes of a character."""
    _waiting: deque[tuple[int, int, TokenLogprob]] = field(default_factory=deque)
    """Log-probabilities held back, each with the characters before it, and those that must be out before it may go."""

    def push(self, piece: bytes, logprob: TokenLogprob | None = None) -> Piece:
        """Add one token's bytes; returns the text, and the log-probabilities of its tokens, that may go out now."""
        if not self._halved and piece.isascii():  # the library's decoder takes ten times as long
            text = piece.decode("ascii")
        else:
            text = self._decoder.decode(piece)
            self._halved = bool(self._decoder.getstate()[0])
        if not self.stops and not self.keep_logprobs and self.sorts is None:
            return Piece(text, [], None)
        return self._advance(text, logprob, final=False)

    def flush(self, *, cut: bool = False) -> Piece:
        """Release what is held back, because no more tokens will come; bytes of an unfinished character are dropped.

        `cut`: not the model has ended the text.
        """
        return self._advance("", None, final=True, cut=cut)

    def _advance(self, text: str, logprob: TokenLogprob | None, *, final: bool, cut: bool = False) -> Piece:
        begin = self._decoded
        self._decoded += len(text)
        if logprob is not None:
            self._waiting.append((begin, self._decoded + self._halved, logprob))
        pending = self._held + text
        if self.sorts is None:
            stop, end = find_stop(pending, self.stops)
            end = len(pending) - held_back(pending, self.stops) if stop is None else end
        else:
            pieces = self.sorts.feed(text)
            stop, at = self._find_in_content([*pieces, *self.sorts.flush(cut=cut)] if final else pieces)
            end = (at if stop is not None else min(at, self.sorts.n_passed)) - self._released
        if final and stop is None:
            end = len(pending)
        out, self._held = pending[:end], pending[end:] if stop is None else ""
        self._released += len(out)
        return Piece(out, self._release_logprobs(final=final, stopped=stop is not None), stop)

    def _find_in_content(self, pieces: Sequence[Sorted]) -> tuple[str | None, int]:
        """The stop string that begins first in the content and where in the text; else where one may yet begin."""
        for piece in pieces:
            if not isinstance(piece, Content):
                self._run = ""
                continue
            if piece.at != self._run_at + len(self._run):
                self._run, self._run_at = "", piece.at
            self._run += piece.text
            stop, at = find_stop(self._run, self.stops)
            if stop is not None:
                return stop, self._run_at + at
            keep = held_back(self._run, self.stops)
            self._run_at += len(self._run) - keep
            self._run = self._run[len(self._run) - keep :]
        return None, self._run_at if self._run else self._decoded

    def _release_logprobs(self, *, final: bool, stopped: bool) -> list[TokenLogprob]:
        """Those whose text is out; at a stop string also the one whose text it has cut."""
        ready: list[TokenLogprob] = []
        while self._waiting:
            begin, end, logprob = self._waiting[0]
            if end > self._released and not (begin < self._released if stopped else final):
                break
            self._waiting.popleft()
            ready.append(logprob)
        return ready


def find_stop(text: str, stops: Sequence[str]) -> tuple[str | None, int]:
    """The stop string that begins first in `text`, the longest of several, and where; (None, -1) without one."""
    best: str | None = None
    at = -1
    for stop in stops:
        found = text.find(stop)
        if found >= 0 and (best is None or found < at or (found == at and len(stop) > len(best))):
            best, at = stop, found
    return best, at


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of a stop string."""
    longest = 0
    for stop in stops:
        begin = max(0, len(text) - len(stop) + 1)
        while (begin := text.find(stop[0], begin)) >= 0 and len(text) - begin > longest:
            if stop.startswith(text[begin:]):
                longest = len(text) - begin
                break
            begin += 1
    return longest
