"""A chat completion as clients read it: a stream of chunks, or one object.

Pure: deltas in, bytes out. Sorting text into content, reasoning and calls is `splitter`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from server.output.frame import DONE, Framer, Head, Usage, chat_logprobs, to_json
from server.output.splitter import Splitter, finish_reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import Delta, TokenLogprob


class ChatStream:
    """The chunks of one streamed chat completion."""

    def __init__(self, head: Head, *, include_usage: bool, new_splitter: Callable[[], Splitter | None]) -> None:
        self._framer = Framer(head, "chat.completion.chunk", include_usage=include_usage)
        self._include_usage = include_usage
        self._new_splitter = new_splitter
        self._splitters: dict[int, Splitter | None] = {}

    def delta(self, event: Delta, choice: int) -> bytes:
        """The chunks of one delta; empty where all of its text is held back."""
        opening = b""
        if choice not in self._splitters:
            self._splitters[choice] = self._new_splitter()
            opening = self._chunk(choice, b'"role":"assistant","content":""')
        splitter = self._splitters[choice]
        if splitter is None and event.logprobs is None and event.finish_reason is None:
            return opening + self._chunk(choice, b'"content":' + to_json(event.text)) if event.text else opening
        return opening + self._sorted(event, choice, splitter)

    def _sorted(self, event: Delta, choice: int, splitter: Splitter | None) -> bytes:
        if splitter is None:
            pieces: list[Piece] = [Content(event.text)] if event.text else []
        else:
            pieces = splitter.feed(event.text)
            if event.finish_reason is not None:
                pieces += splitter.flush()
        logprobs = b"null" if event.logprobs is None else to_json(chat_logprobs(event.logprobs))
        bodies = [_piece_body(piece) for piece in _joined(pieces)]
        if not bodies and event.logprobs:
            bodies = [b'"content":""']
        chunks = [self._chunk(choice, body, b"null" if i else logprobs) for i, body in enumerate(bodies)]
        if event.finish_reason is not None:
            reason = finish_reason(event.finish_reason, has_calls=splitter is not None and splitter.has_calls)
            chunks.append(self._chunk(choice, b"", finish=to_json(reason)))
        return b"".join(chunks)

    def end(self, usage: Usage) -> bytes:
        """The usage where it was asked for, and the end mark."""
        return (self._framer.usage(usage) if self._include_usage else b"") + DONE

    def _chunk(self, choice: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return self._framer.frame(
            b'{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b}' % (choice, delta, logprobs, finish)
        )


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


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring pieces of one kind as one."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + piece.text)
        elif isinstance(piece, CallArguments) and isinstance(last, CallArguments) and piece.number == last.number:
            joined[-1] = CallArguments(last.number, last.text + piece.text)
        else:
            joined.append(piece)
    return joined


class _Choice:
    """One choice as far as it has come."""

    def __init__(self, splitter: Splitter | None) -> None:
        self.splitter = splitter
        self.pieces: list[Piece] = []
        self.logprobs: list[TokenLogprob] | None = None
        self.finish_reason: str | None = None

    def add(self, event: Delta) -> None:
        if self.splitter is None:
            self.pieces.append(Content(event.text))
        else:
            self.pieces += self.splitter.feed(event.text)
        if event.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += event.logprobs
        if event.finish_reason is not None:
            self.pieces += [] if self.splitter is None else self.splitter.flush()
            self.finish_reason = finish_reason(
                event.finish_reason, has_calls=self.splitter is not None and self.splitter.has_calls
            )

    def as_dict(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(),
            "logprobs": None if self.logprobs is None else chat_logprobs(self.logprobs),
            "finish_reason": self.finish_reason,
        }

    def _message(self) -> dict[str, Any]:
        calls = [piece for piece in self.pieces if isinstance(piece, CallBegins)]
        content = "".join(piece.text for piece in self.pieces if isinstance(piece, Content))
        reasoning = "".join(piece.text for piece in self.pieces if isinstance(piece, Reasoning))
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not content else content,
            "refusal": None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._arguments(call.number)},
                }
                for call in calls
            ]
        return message

    def _arguments(self, number: int) -> str:
        pieces = (piece for piece in self.pieces if isinstance(piece, CallArguments))
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
