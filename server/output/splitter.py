"""One choice's text through reasoning and tool calls, in the order a model writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.formats.known import named
from backends.formats.pieces import Content, Piece
from server.output.reasoning import ReasoningSplitter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from backends.formats.base import Reader
    from backends.messages import Ready, Started


class Splitter:
    """Sorts the text of one choice: first reasoning, where there are marks for it, then calls, where there is a reader.

    `opened` says that the prompt has already opened a block of reasoning.
    """

    def __init__(self, *, marks: tuple[str, str] | None, opened: bool, calls: Reader | None) -> None:
        self._reasoning = None if marks is None else ReasoningSplitter(marks, opened=opened)
        self._calls = calls
        self._before: int | None = None
        """Characters before the first one that the reader of calls was fed."""

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
        pieces: list[Piece] = [Content(text)] if self._reasoning is None else self._reasoning.feed(text)
        return self._through_calls(pieces)

    def flush(self, *, cut: bool) -> list[Piece]:
        """The rest, at the end of the choice; `cut`: not the model has ended it."""
        pieces = self._through_calls([] if self._reasoning is None else self._reasoning.flush())
        return pieces if self._calls is None else pieces + self._placed(self._calls.flush(cut=cut))

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


def splitters(
    tools: Sequence[dict[str, Any]],
    ready: Ready | None,
    started: Started | None,
    *,
    new_id: Callable[[], str] | None = None,
) -> Callable[[], Splitter | None]:
    """Makes the splitter of each choice: what this model writes, with these tools offered.

    None where the text needs no sorting. `new_id` names the calls; else the model's format does.
    """
    format_ = named(ready.tool_format if ready is not None else None)
    opened = started is not None and started.thinking
    marks = ready.reasoning_marks if ready is not None else None
    reads = bool(tools) or format_.reasons

    def new_splitter() -> Splitter | None:
        if marks is None and not reads:
            return None
        calls = format_.read(tools, new_id=new_id) if reads else None
        return Splitter(marks=None if format_.reasons else marks, opened=opened, calls=calls)

    return new_splitter
