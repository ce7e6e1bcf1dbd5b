"""One choice's text through reasoning and tool calls, in the order a model writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.output.pieces import Content, Piece
from server.output.reasoning import ReasoningSplitter
from server.output.tool_calls import ToolCallSplitter

if TYPE_CHECKING:
    from collections.abc import Callable


class Splitter:
    """Sorts the text of one choice; a part that the model cannot speak is left out."""

    def __init__(self, *, reasons: bool, opened: bool, new_call_id: Callable[[], str] | None) -> None:
        self._reasoning = ReasoningSplitter(opened=opened) if reasons or opened else None
        self._calls = ToolCallSplitter(new_id=new_call_id) if new_call_id is not None else None

    @property
    def has_calls(self) -> bool:
        """A tool call was delivered."""
        return self._calls is not None and self._calls.n_calls > 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        pieces: list[Piece] = [Content(text)] if self._reasoning is None else self._reasoning.feed(text)
        return self._through_calls(pieces)

    def flush(self) -> list[Piece]:
        """The rest, at the end of the choice."""
        pieces = self._through_calls([] if self._reasoning is None else self._reasoning.flush())
        return pieces if self._calls is None else pieces + self._calls.flush()

    def _through_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._calls is None:
            return pieces
        sorted_pieces: list[Piece] = []
        for piece in pieces:
            sorted_pieces += self._calls.feed(piece.text) if isinstance(piece, Content) else [piece]
        return sorted_pieces


def finish_reason(reason: str, *, has_calls: bool) -> str:
    """OpenAI's word for how a choice ended."""
    return "tool_calls" if has_calls and reason == "stop" else reason
