"""A chat completion as clients read it: a stream of chunks, or one object.

Pure: deltas in, bytes out. Sorting text into content, reasoning and calls is `sorting`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from server.output.frame import DONE, Framer, Head, Usage, chat_logprobs, to_json
from server.output.sorting import Said, Sorter, joined

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.formats.splitter import Splitter
    from backends.messages import Delta, TokenLogprob


class ChatStream:
    """The chunks of one streamed chat completion."""

    def __init__(self, head: Head, *, include_usage: bool, new_splitter: Callable[[], Splitter | None]) -> None:
        self._framer = Framer(head, "chat.completion.chunk", include_usage=include_usage)
        self._include_usage = include_usage
        self._new_splitter = new_splitter
        self._sorters: dict[int, Sorter] = {}

    def delta(self, event: Delta, choice: int) -> bytes:
        """The chunks of one delta; empty where all of its text is held back."""
        opening = b""
        if choice not in self._sorters:
            self._sorters[choice] = Sorter(self._new_splitter())
            opening = self._chunk(choice, b'"role":"assistant","content":""')
        sorter = self._sorters[choice]
        if sorter.needs_none and event.logprobs is None and event.finish_reason is None:
            return opening + self._chunk(choice, b'"content":' + to_json(event.text)) if event.text else opening
        chunks = [self._chunk(choice, _piece_body(said.piece), _logprobs(said)) for said in joined(sorter.said(event))]
        if event.finish_reason is not None:
            chunks.append(self._chunk(choice, b"", finish=to_json(sorter.finish_reason)))
        return opening + b"".join(chunks)

    def end(self, usage: Usage) -> bytes:
        """The usage where it was asked for, and the end mark."""
        return (self._framer.usage(usage) if self._include_usage else b"") + DONE

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return self._framer.frame(
            b'{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b}' % (choice, delta, logprobs, finish)
        )


def _logprobs(said: Said) -> bytes:
    return b"null" if said.tokens is None else to_json(chat_logprobs(said.tokens))


def _piece_body(piece: Piece) -> bytes:
    """The inside of `delta` for one piece."""
    if isinstance(piece, CallBegins):
        function = {"name": piece.name, "arguments": ""}
        return b'"tool_calls":' + to_json(
            [{"index": piece.number, "id": piece.id, "type": "function", "function": function}]
        )
    if isinstance(piece, CallArguments):
        return b'"tool_calls":' + to_json([{"index": piece.number, "function": {"arguments": piece.text}}])
    name = b'"content":' if isinstance(piece, Content) else b'"reasoning_content":'
    return name + to_json(piece.text)


class ChatMessage(msgspec.Struct, kw_only=True):
    """An answer with every field that OpenAI's has; what only some answers hold is left out of the others."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    annotations: list[Any] = msgspec.field(default_factory=list)
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET


class _Choice:
    """One choice as far as it has come."""

    def __init__(self, splitter: Splitter | None) -> None:
        self._sorter = Sorter(splitter)
        self._pieces: list[Piece] = []
        self._logprobs: list[TokenLogprob] | None = None

    def add(self, event: Delta) -> None:
        if event.logprobs is not None and self._logprobs is None:
            self._logprobs = []
        for piece, tokens in self._sorter.said(event):
            self._pieces.append(piece)
            if tokens is not None and self._logprobs is not None:
                self._logprobs += tokens

    def as_dict(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(),
            "logprobs": None if self._logprobs is None else chat_logprobs(self._logprobs),
            "finish_reason": self._sorter.finish_reason,
        }

    def _message(self) -> ChatMessage:
        calls = [piece for piece in self._pieces if isinstance(piece, CallBegins)]
        content = "".join(piece.text for piece in self._pieces if isinstance(piece, Content))
        reasoning = "".join(piece.text for piece in self._pieces if isinstance(piece, Reasoning))
        message = ChatMessage(content=None if calls and not content else content)
        if reasoning:
            message.reasoning_content = reasoning
        if calls:
            message.tool_calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._arguments(call.number)},
                }
                for call in calls
            ]
        return message

    def _arguments(self, number: int) -> str:
        pieces = (piece for piece in self._pieces if isinstance(piece, CallArguments))
        return "".join(piece.text for piece in pieces if piece.number == number)


class ChatWhole:
    """One chat completion collected from its deltas."""

    def __init__(self, *, n: int, new_splitter: Callable[[], Splitter | None]) -> None:
        self._choices = [_Choice(new_splitter()) for _ in range(n)]

    def add(self, event: Delta, choice: int) -> None:
        """More of one choice."""
        self._choices[choice].add(event)

    def body(self, head: Head, usage: Usage) -> bytes:
        """The whole answer."""
        choices = [choice.as_dict(i) for i, choice in enumerate(self._choices)]
        return to_json({**head.fields("chat.completion"), "choices": choices, "usage": usage.as_dict()})
