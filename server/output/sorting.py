"""One choice's deltas as content, reasoning and calls, for surfaces that have one choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.formats.pieces import Content
from server.output.splitter import finish_reason

if TYPE_CHECKING:
    from backends.formats.pieces import Piece
    from backends.messages import Delta
    from server.output.splitter import Splitter


class Sorter:
    """`splitter` is None where the text needs no sorting."""

    def __init__(self, splitter: Splitter | None) -> None:
        self._splitter = splitter
        self.finish_reason: str | None = None
        """OpenAI's word for how it ended; None while it goes on."""
        self.stop: str | None = None
        """The stop string that ended it, when one did."""

    def pieces(self, event: Delta) -> list[Piece]:
        """What is certain by now; the rest with the last delta."""
        if self._splitter is None:
            pieces: list[Piece] = [Content(event.text)] if event.text else []
        else:
            pieces = self._splitter.feed(event.text)
        if event.finish_reason is not None:
            has_calls = False
            if self._splitter is not None:
                pieces += self._splitter.flush()
                has_calls = self._splitter.has_calls
            self.finish_reason = finish_reason(event.finish_reason, has_calls=has_calls)
            self.stop = event.stop
        return pieces
