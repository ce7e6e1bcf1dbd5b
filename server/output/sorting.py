"""One choice's deltas as content, reasoning and calls, each piece of content with the tokens that wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jiter

from backends.formats.pieces import CallArguments, Content, Piece, Reasoning
from server.output.content_tokens import ContentTokens

if TYPE_CHECKING:
    from backends.formats.splitter import Splitter
    from backends.messages import Delta, TokenLogprob


class Said(NamedTuple):
    """A piece, and the tokens that content came to its end with; None where they were not asked for."""

    piece: Piece
    tokens: list[TokenLogprob] | None = None


class Sorter:
    """`splitter` is None where the text needs no sorting."""

    def __init__(self, splitter: Splitter | None) -> None:
        self._splitter = splitter
        self._n_chars = 0
        self._tokens: ContentTokens | None = None
        self.finish_reason: str | None = None
        """OpenAI's word for how it ended; None while it goes on."""
        self.stop: str | None = None
        """The stop string that ended it, when one did."""

    @property
    def needs_none(self) -> bool:
        """Every text is content as it comes."""
        return self._splitter is None

    @property
    def is_cut(self) -> bool:
        """It has ended inside a call."""
        return self._splitter is not None and self._splitter.is_cut

    def said(self, event: Delta) -> list[Said]:
        """What is certain by now; the rest with the last delta."""
        pieces = self._pieces(event)
        if event.logprobs is None:
            return [Said(piece) for piece in pieces]
        self._tokens = self._tokens or ContentTokens()
        self._tokens.add(event.logprobs)
        said = [entry for piece in pieces for entry in self._with_tokens(piece, self._tokens)]
        if self._splitter is not None and pieces and not isinstance(pieces[-1], Content):
            self._tokens.skip_to(self._splitter.n_passed)
        if event.finish_reason is not None and (rest := self._tokens.rest()):
            said.append(Said(Content(""), rest))
        return said

    def _pieces(self, event: Delta) -> list[Piece]:
        if self._splitter is None:
            pieces: list[Piece] = [Content(event.text, self._n_chars)] if event.text else []
            self._n_chars += len(event.text)
        else:
            pieces = self._splitter.feed(event.text)
        if event.finish_reason is not None:
            self._end(event, pieces)
        return pieces

    def _end(self, event: Delta, pieces: list[Piece]) -> None:
        reason = self.finish_reason = event.finish_reason
        self.stop = event.stop
        if self._splitter is not None:
            pieces += self._splitter.flush(cut=reason == "length")  # a stop string stands in content
            if reason == "stop" and self._splitter.has_calls and not self._splitter.is_cut:
                self.finish_reason = "tool_calls"

    @staticmethod
    def _with_tokens(piece: Piece, tokens: ContentTokens) -> list[Said]:
        if isinstance(piece, Content):
            return [Said(piece, tokens.of(piece.at, len(piece.text)))]
        rest = tokens.rest()  # content has come to an end here, whatever else its last token holds
        return [*([Said(Content(""), rest)] if rest else []), Said(piece)]


def joined(everything: list[Said]) -> list[Said]:
    """Neighbouring pieces of one kind as one."""
    found: list[Said] = []
    for said in everything:
        last = found[-1] if found else None
        piece = None if last is None else _join(last.piece, said.piece)
        if last is None or piece is None:
            found.append(said)
        else:
            found[-1] = Said(piece, None if said.tokens is None else [*(last.tokens or []), *said.tokens])
    return found


def _join(first: Piece, second: Piece) -> Piece | None:
    """Both as one; None where they are of different kinds."""
    if isinstance(first, Content) and isinstance(second, Content):
        return Content(first.text + second.text, first.at)
    if isinstance(first, Reasoning) and isinstance(second, Reasoning):
        return Reasoning(first.text + second.text)
    if isinstance(first, CallArguments) and isinstance(second, CallArguments) and first.number == second.number:
        return CallArguments(first.number, first.text + second.text)
    return None


def arguments_of(text: str) -> dict[str, Any]:
    """A call's arguments as an object; of those that were cut the whole values alone."""
    try:
        value = jiter.from_json(text.encode(), partial_mode=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
