"""A message as Anthropic's clients read it: events around blocks, or one object. Signs of life are pings.

Pure: deltas in, bytes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends.formats.pieces import CallArguments, CallBegins, Content
from server.error_bodies import anthropic_error
from server.output.anthropic_objects import (
    SIGNATURE,
    Block,
    DeltaUsage,
    Message,
    MessageDelta,
    MessageDeltaEvent,
    MessageUsage,
    OutputTokensDetails,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
    use_id,
)
from server.output.frame import to_json
from server.output.sorting import arguments_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.formats.pieces import Piece
    from backends.messages import Delta, Started
    from server.errors import ApiError
    from server.output.frame import Head, Usage
    from server.output.sorting import Sorter
    from server.pool.stream import Waiting

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

Event = dict[str, Any]


class _Blocks:
    """The content of a message as it grows: `done` are whole blocks; one more may be open."""

    def __init__(self) -> None:
        self.done: list[Block] = []
        self._block: Block | None = None
        self._texts: list[str] = []

    def feed(self, piece: Piece) -> Iterator[Event]:
        """The events of one more piece."""
        if isinstance(piece, CallBegins):
            yield from self.close()
            yield from self._open(ToolUseBlock(id=use_id(piece.id), name=piece.name, input={}))
            return
        if isinstance(piece, CallArguments):
            yield from self._more("input_json_delta", "partial_json", piece.text)
            return
        kind = TextBlock if isinstance(piece, Content) else ThinkingBlock
        if not isinstance(self._block, kind):
            yield from self.close()
            yield from self._open(kind())
        name = "text" if isinstance(piece, Content) else "thinking"
        yield from self._more(f"{name}_delta", name, piece.text)

    def close(self) -> Iterator[Event]:
        """The open block is done."""
        if self._block is None:
            return
        block, text, index = self._block, "".join(self._texts), len(self.done)
        if isinstance(block, TextBlock):
            block.text = text
        elif isinstance(block, ThinkingBlock):
            block.thinking, block.signature = text, SIGNATURE
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        else:
            block.input = arguments_of(text)
        yield {"type": "content_block_stop", "index": index}
        self.done.append(block)
        self._block = None

    def _open(self, block: Block) -> Iterator[Event]:
        self._block, self._texts = block, []
        yield {"type": "content_block_start", "index": len(self.done), "content_block": msgspec.structs.replace(block)}

    def _more(self, kind: str, field: str, text: str) -> Iterator[Event]:
        self._texts.append(text)
        yield {"type": "content_block_delta", "index": len(self.done), "delta": {"type": kind, field: text}}


class MessageAnswer:
    """One message, streamed or collected. `on_done` gets its content before the client does."""

    def __init__(
        self, head: Head, sorter: Sorter, started: Started | None, *, on_done: Callable[[list[Block]], None]
    ) -> None:
        self._head = head
        self._sorter = sorter
        self._started = started
        self._on_done = on_done
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
        opening = self._open() + b"".join(map(_frame, self._blocks.close()))
        self._on_done(self._blocks.done)
        delta = MessageDeltaEvent(delta=self._stop(), usage=_delta_usage(usage))
        return opening + _named("message_delta", delta) + _frame({"type": "message_stop"})

    def body(self, _head: Head, usage: Usage) -> bytes:
        """The whole message."""
        for _ in self._blocks.close():
            pass
        self._on_done(self._blocks.done)
        return to_json(self._message(self._stop(), _usage(usage), self._blocks.done))

    def _changes(self, event: Delta) -> Iterator[Event]:
        for piece, _ in self._sorter.said(event):
            yield from self._blocks.feed(piece)

    def _open(self) -> bytes:
        """The event that announces the message, once."""
        if self._opened:
            return b""
        self._opened = True
        prompt, cached = (self._started.prompt_tokens, self._started.cached_tokens) if self._started else (0, 0)
        usage = MessageUsage(**_tokens(prompt, cached, 0, 0))
        opening = self._message(MessageDelta(stop_reason=None, stop_sequence=None), usage, [])
        return _frame({"type": "message_start", "message": opening})

    def _message(self, stop: MessageDelta, usage: MessageUsage, content: list[Block]) -> Message:
        return Message(
            id=self._head.id,
            model=self._head.model,
            content=content,
            stop_reason=stop.stop_reason,
            stop_sequence=stop.stop_sequence,
            usage=usage,
        )

    def _stop(self) -> MessageDelta:
        if self._sorter.finish_reason == "stop" and self._sorter.stop is not None:
            return MessageDelta(stop_reason="stop_sequence", stop_sequence=self._sorter.stop)
        reason = _STOP_REASONS.get(self._sorter.finish_reason or "stop")
        return MessageDelta(stop_reason=reason, stop_sequence=None)


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
    return _named(event["type"], event)


def _named(kind: str, event: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode("ascii"), to_json(event))


def _usage(usage: Usage) -> MessageUsage:
    return MessageUsage(**_counted(usage))


def _delta_usage(usage: Usage) -> DeltaUsage:
    return DeltaUsage(**_counted(usage))


def _counted(usage: Usage) -> dict[str, Any]:
    return _tokens(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens)


def _tokens(prompt: int, cached: int, completion: int, reasoning: int) -> dict[str, Any]:
    """Anthropic counts what was computed before apart from the rest of the input."""
    return {
        "input_tokens": prompt - cached,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
        "output_tokens_details": OutputTokensDetails(reasoning),
    }
