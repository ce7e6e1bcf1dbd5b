"""A message as Anthropic's clients read it: events around blocks, or one object. Signs of life are pings.

Pure: deltas in, bytes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jiter

from backends.formats.pieces import CallArguments, CallBegins, Content
from server.error_bodies import anthropic_error
from server.output.frame import to_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.formats.pieces import Piece
    from backends.messages import Delta, Started
    from server.errors import ApiError
    from server.output.frame import Head, Usage
    from server.output.sorting import Sorter
    from server.pool.stream import Waiting

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
SIGNATURE = "onecard"
"""Stands where Anthropic proves that thinking is its own; any is accepted back."""
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

Event = dict[str, Any]


class _Blocks:
    """The content of a message as it grows: `done` are whole blocks; one more may be open."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._block: dict[str, Any] | None = None
        self._texts: list[str] = []

    def feed(self, piece: Piece) -> Iterator[Event]:
        """The events of one more piece."""
        if isinstance(piece, CallBegins):
            yield from self.close()
            yield from self._open({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})
            return
        if isinstance(piece, CallArguments):
            yield from self._more("input_json_delta", "partial_json", piece.text)
            return
        kind = "text" if isinstance(piece, Content) else "thinking"
        if self._block is None or self._block["type"] != kind:
            yield from self.close()
            empty = {"type": "text", "text": ""}
            yield from self._open(empty if kind == "text" else {"type": "thinking", "thinking": "", "signature": ""})
        yield from self._more(f"{kind}_delta", kind, piece.text)

    def close(self) -> Iterator[Event]:
        """The open block is done."""
        if self._block is None:
            return
        block, text, index = self._block, "".join(self._texts), len(self.done)
        if block["type"] == "text":
            block["text"] = text
        elif block["type"] == "thinking":
            block |= {"thinking": text, "signature": SIGNATURE}
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        else:
            block["input"] = _input(text)
        yield {"type": "content_block_stop", "index": index}
        self.done.append(block)
        self._block = None

    def _open(self, block: dict[str, Any]) -> Iterator[Event]:
        self._block, self._texts = block, []
        yield {"type": "content_block_start", "index": len(self.done), "content_block": dict(block)}

    def _more(self, kind: str, field: str, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield {"type": "content_block_delta", "index": len(self.done), "delta": {"type": kind, field: text}}


def _input(text: str) -> dict[str, Any]:
    """A call's arguments as an object; of those that were cut what Anthropic's clients read: whole values alone."""
    try:
        value = jiter.from_json(text.encode(), partial_mode=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class MessageAnswer:
    """One message, streamed or collected."""

    def __init__(self, head: Head, sorter: Sorter, started: Started | None) -> None:
        self._head = head
        self._sorter = sorter
        self._started = started
        self._blocks = _Blocks()
        self._opened = False

    def delta(self, event: Delta, _choice: int) -> bytes:
        """The events of one delta; empty where all of its text is held back."""
        return self._open() + b"".join([_frame(change) for change in self._changes(event)])

    def add(self, event: Delta, _choice: int) -> None:
        """More of a message that is not streamed."""
        for _ in self._changes(event):
            pass

    def end(self, usage: Usage) -> bytes:
        """What closes the last block, and the message."""
        opening = self._open()
        closing: list[Event] = [
            *self._blocks.close(),
            {"type": "message_delta", "delta": self._stop(), "usage": _usage(usage)},
            {"type": "message_stop"},
        ]
        return opening + b"".join(map(_frame, closing))

    def body(self, _head: Head, usage: Usage) -> bytes:
        """The whole message."""
        for _ in self._blocks.close():
            pass
        return to_json({**self._message(_usage(usage)), "content": self._blocks.done, **self._stop()})

    def _changes(self, event: Delta) -> Iterator[Event]:
        for piece, _ in self._sorter.said(event):
            yield from self._blocks.feed(piece)

    def _open(self) -> bytes:
        """The event that announces the message, once."""
        if self._opened:
            return b""
        self._opened = True
        prompt, cached = (self._started.prompt_tokens, self._started.cached_tokens) if self._started else (0, 0)
        return _frame({"type": "message_start", "message": self._message(_tokens(prompt, cached, 0))})

    def _message(self, usage: Mapping[str, int]) -> dict[str, Any]:
        return {
            "id": self._head.id,
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _stop(self) -> dict[str, Any]:
        if self._sorter.finish_reason == "stop" and self._sorter.stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._sorter.stop}
        return {"stop_reason": _STOP_REASONS.get(self._sorter.finish_reason or "stop"), "stop_sequence": None}


class Pings:
    """What a stream of Anthropic's says beside its answer."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def waiting(self, _model: str, _waiting: Waiting | None) -> bytes:
        """The job has not begun yet."""
        return PING

    def keep_alive(self) -> bytes:
        """Nothing else was said for a while."""
        return PING

    def error(self, problem: ApiError) -> bytes:
        """A failure after the headers; no `message_stop` follows it."""
        return b"event: error\ndata: " + to_json(anthropic_error(problem, self._request_id)) + b"\n\n"


def _frame(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode("ascii"), to_json(event))


def _usage(usage: Usage) -> dict[str, int]:
    return _tokens(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def _tokens(prompt: int, cached: int, completion: int) -> dict[str, int]:
    """Anthropic counts what was computed before apart from the rest of the input."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }
