"""Streaming: takes Hermes tool calls, `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, out of a model's text.

Pure; the same result however the text is cut. A call is delivered when it is whole; one that is malformed stays text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jiter
import msgspec

from server.output.pieces import Call, Content, Piece, held_back

if TYPE_CHECKING:
    from collections.abc import Callable

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolCallSplitter:
    """One choice's text; `new_id` names the calls."""

    def __init__(self, *, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._held = ""
        self._inside = False
        self._searched = 0
        self._gap = ""
        self._after_call = False
        self.n_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """The pieces that are certain by now."""
        self._held += text
        pieces: list[Piece] = []
        while self._inside_move(pieces) if self._inside else self._outside_move(pieces):
            pass
        return pieces

    def flush(self) -> list[Piece]:
        """The rest, at the end of the text; a whole call counts even where its closing tag is missing."""
        text, self._held = self._held, ""
        if not self._inside:
            return [Content(text)] if text and not self._after_call else []
        self._inside = False
        return [self._closed(text, OPEN + text)]

    def _outside_move(self, pieces: list[Piece]) -> bool:
        start = self._held.find(OPEN)
        if start >= 0:
            before = self._held[:start]
            self._emit(pieces, before.rstrip())
            self._gap = before[len(before.rstrip()) :]
            self._held = self._held[start + len(OPEN) :]
            self._inside, self._searched = True, 0
            return True
        certain = self._held[: len(self._held) - held_back(self._held, OPEN)].rstrip()
        self._held = self._held[len(certain) :]
        self._emit(pieces, certain)
        return False

    def _inside_move(self, pieces: list[Piece]) -> bool:
        end = self._held.find(CLOSE, self._searched)
        if end < 0:
            self._searched = max(self._searched, len(self._held) - len(CLOSE) + 1)
            return False
        body = self._held[:end]
        if _is_unfinished(body):
            # The closing tag stands inside a string of the call's own JSON.
            self._searched = end + len(CLOSE)
            return True
        pieces.append(self._closed(body, OPEN + body + CLOSE))
        self._held = self._held[end + len(CLOSE) :]
        self._inside = False
        return True

    def _emit(self, pieces: list[Piece], text: str) -> None:
        """Text outside calls; the space around a call is layout."""
        if text:
            pieces.append(Content(text.lstrip() if self._after_call else text))
            self._after_call = False

    def _closed(self, body: str, written: str) -> Piece:
        """What stood between the tags: a call, or text as it was written."""
        call = self._read(body)
        self._after_call = call is not None
        return call if call is not None else Content(self._gap + written)

    def _read(self, body: str) -> Call | None:
        """The call in `body`; None where it is malformed."""
        try:
            value = jiter.from_json(body.strip().encode(), allow_inf_nan=False)
        except ValueError:
            return None
        if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
            return None
        arguments = value.get("arguments", {})
        if isinstance(arguments, str):
            text = arguments
        elif isinstance(arguments, dict):
            text = msgspec.json.encode(arguments).decode()
        else:
            return None
        self.n_calls += 1
        return Call(self.n_calls - 1, self._new_id(), name, text)


def _is_unfinished(body: str) -> bool:
    """Whether the JSON breaks off inside a string."""
    try:
        jiter.from_json(body.strip().encode(), allow_inf_nan=False)
    except ValueError as problem:
        return str(problem).startswith("EOF while parsing a string")
    return False
