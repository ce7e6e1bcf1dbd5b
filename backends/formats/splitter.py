"""One choice's text through reasoning and tool calls, in the order a model writes them.

The worker holds stop strings against the content that this finds, the server writes answers of it: both see the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from backends.formats.pieces import CallBegins, Content, Piece, Reasoning, stretches
from backends.formats.reasoning import ReasoningSplitter
from backends.messages import ToolCalls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.formats.base import Format, PieceReader
    from backends.messages import Constraint


class Splitter:
    """Sorts the text of one choice: first reasoning, where there are marks for it, then calls, where there is a reader.

    `opened` says that the prompt has already opened a block of reasoning. `within` makes a reader of calls that are
    written inside of an open block: the first of them ends it. What only looks like one is reasoning.
    """

    def __init__(
        self,
        *,
        marks: tuple[str, str] | None,
        opened: bool,
        calls: PieceReader | None,
        within: Callable[[], PieceReader] | None = None,
    ) -> None:
        self._reasoning = None if marks is None else ReasoningSplitter(marks, opened=opened)
        self._calls = calls
        self._before: int | None = None
        """Characters before the first one that the reader of calls was fed."""
        self._new_within = within
        self._within: PieceReader | None = None
        self._within_at = 0
        """Characters before the first one that it was fed."""
        self._unsure = ""
        """What it was fed and has not sorted yet."""

    @property
    def has_calls(self) -> bool:
        """A tool call was delivered."""
        return self._calls is not None and self._calls.n_calls > 0

    @property
    def is_cut(self) -> bool:
        """The text has ended inside a call."""
        return self._calls is not None and self._calls.is_cut

    @property
    def n_passed(self) -> int:
        """Characters of what was fed in front of which no further content begins."""
        if self._calls is not None and (self._reasoning is None or self._before is not None):
            return (self._before or 0) + self._calls.n_passed
        return 0 if self._reasoning is None else self._reasoning.n_passed

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        return [piece for stretch in stretches(text) for piece in self._feed(stretch)]

    def _feed(self, text: str) -> list[Piece]:
        if self._reasoning is None:
            return self._through_calls([Content(text)])
        pieces: list[Piece] = []
        while self._new_within is not None:
            reasons = self._reasoning.reasons
            more, text = self._reason(text) if reasons else self._until_reasoning(text)
            pieces += more
            if self._reasoning is None:
                return pieces
            if self._reasoning.reasons is reasons:
                return pieces
        return pieces + self._through_calls(self._reasoning.feed(text))

    def flush(self, *, cut: bool) -> list[Piece]:
        """The rest, at the end of the choice; `cut`: not the model has ended it."""
        pieces: list[Piece] = []
        if self._within is not None:
            pieces = self._flush_within(self._within, cut=cut)
        pieces += self._through_calls([] if self._reasoning is None else self._reasoning.flush())
        return pieces if self._calls is None else pieces + self._placed(self._calls.flush(cut=cut))

    def _until_reasoning(self, text: str) -> tuple[list[Piece], str]:
        """Text outside of a block up to where one opens, and what is left of it there."""
        assert self._reasoning is not None
        pieces = self._through_calls(self._reasoning.feed_until(text, reasoning=True))
        return pieces, self._reasoning.take() if self._reasoning.reasons else ""

    def _reason(self, text: str) -> tuple[list[Piece], str]:
        """Text inside of an open block, and what is left of it where the block ends."""
        assert self._reasoning is not None
        assert self._new_within is not None
        if self._within is None:
            self._within, self._within_at, self._unsure = self._new_within(), self._reasoning.n_passed, ""
        self._unsure += text
        pieces: list[Piece] = []
        found = self._within.feed(text)
        for i, piece in enumerate(found):
            if not isinstance(piece, Content):
                return pieces + self._end_by_call(self._within, found[i:]), ""
            self._unsure = self._unsure[len(piece.text) :]
            pieces += self._reasoning.feed_until(piece.text, reasoning=False)
            if not self._reasoning.reasons:
                left = self._reasoning.take() + self._unsure
                self._within = None
                return pieces, left
        return pieces, ""

    def _end_by_call(self, reader: PieceReader, found: list[Piece]) -> list[Piece]:
        """A call has begun in the open block: from here on its reader has the text."""
        assert self._reasoning is not None
        rest = "".join(piece.text for piece in self._reasoning.flush() if isinstance(piece, Reasoning)).rstrip("\n")
        self._calls, self._before = reader, self._within_at
        self._reasoning = self._within = None
        return [*([Reasoning(rest)] if rest else []), *self._placed(found)]

    def _flush_within(self, reader: PieceReader, *, cut: bool) -> list[Piece]:
        """The end of the text inside of an open block: a call whose name is whole, or reasoning to the last letter."""
        assert self._reasoning is not None
        unsure, found = self._unsure, reader.flush(cut=cut)
        if any(isinstance(piece, CallBegins) for piece in found):
            at = next(i for i, piece in enumerate(found) if isinstance(piece, CallBegins))
            for piece in found[:at]:
                if isinstance(piece, Content):
                    self._reasoning.feed(piece.text)
            return self._end_by_call(reader, found[at:])
        self._within = None
        return self._through_calls(self._reasoning.feed(unsure))

    def _through_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        sorted_pieces: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Content):
                self._before = piece.at if self._before is None else self._before
                sorted_pieces += self._placed(self._calls.feed(piece.text))
            else:
                sorted_pieces.append(piece)
        return sorted_pieces

    def _placed(self, pieces: list[Piece]) -> list[Piece]:
        """What the reader of calls found, at its place in all that was fed."""
        before = self._before or 0
        return [piece._replace(at=before + piece.at) if isinstance(piece, Content) else piece for piece in pieces]


def splitter(
    format_: Format,
    marks: tuple[str, str] | None,
    *,
    opened: bool,
    tools: Sequence[dict[str, Any]],
    only: Constraint | None = None,
    new_id: Callable[[], str] | None = None,
) -> Splitter | None:
    """What sorts the text of one choice of a model with this format, with these tools offered.

    None where the text needs no sorting. `only` tells the functions that may be called, as its grammar has them.
    `new_id` names the calls; else the format does.
    """
    alone = only is not None
    if isinstance(only, ToolCalls):
        tools = [{"name": f.name, "parameters": json.loads(f.parameters)} for f in only.functions]
        alone = only.content is not None
    reads = bool(tools) or format_.reasons
    if marks is None and not reads:
        return None
    calls = format_.read(tools, new_id=new_id, alone=alone, opened=opened) if reads else None
    if format_.reasons or marks is None or calls is None:
        return Splitter(marks=None if format_.reasons else marks, opened=opened, calls=calls)
    closing = marks[1]
    return Splitter(
        marks=marks, opened=opened, calls=calls, within=lambda: format_.read(tools, new_id=new_id, closing=closing)
    )
