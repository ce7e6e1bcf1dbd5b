"""The output items of a response as they grow: reasoning, a message, function calls, in the order they are written.

Pure: pieces in; changes out, each the kind of a streamed event and its fields. Bytes and numbers are `responses`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backends.formats.pieces import CallArguments, CallBegins, Content
from server.output.response_objects import FunctionCall, OutputMessage, OutputText, ReasoningItem, asdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.formats.pieces import Piece

Change = tuple[str, dict[str, Any]]


class Items:
    """`items` holds what is done; one more may be growing."""

    def __init__(self, *, new_id: Callable[[str], str], envelope: Callable[[str], str] | None) -> None:
        self.items: list[dict[str, Any]] = []
        self._new_id = new_id
        self._envelope = envelope
        """Makes `encrypted_content` of reasoning, where the client asked for it."""
        self._item: dict[str, Any] | None = None
        self._texts: list[str] = []
        self._logprobs: list[Any] = []

    def feed(self, piece: Piece, logprobs: list[Any]) -> Iterator[Change]:
        """What one more piece changes; `logprobs` are those of its tokens."""
        if isinstance(piece, CallBegins):
            yield from self.close()
            yield from self._open_call(piece.id, piece.name)
            return
        if isinstance(piece, CallArguments):
            yield from self._more_arguments(piece.text)
            return
        kind = "message" if isinstance(piece, Content) else "reasoning"
        if self._item is None or self._item["type"] != kind:
            yield from self.close()
            yield from self._open(kind)
        self._texts.append(piece.text)
        fields: dict[str, Any] = {**self._place(), "content_index": 0, "delta": piece.text}
        if kind == "message":
            self._logprobs += logprobs
            yield "response.output_text.delta", {**fields, "logprobs": logprobs}
        else:
            yield "response.reasoning_text.delta", fields

    def finish(self, status: str) -> Iterator[Change]:
        """The end of the answer; one without words is a message without words."""
        if self._item is None and not self.items:
            yield from self._open("message")
        yield from self.close(status)

    def close(self, status: str = "completed") -> Iterator[Change]:
        """The growing item is done."""
        if self._item is None:
            return
        item, text, place = self._item, "".join(self._texts), self._place()
        item["status"] = status
        if item["type"] == "function_call":
            yield "response.function_call_arguments.done", {**place, "name": item["name"], "arguments": text}
            item["arguments"] = text
        else:
            place["content_index"] = 0
            part = _text_part(text, self._logprobs)
            if item["type"] == "message":
                yield "response.output_text.done", {**place, "text": text, "logprobs": self._logprobs}
            else:
                yield "response.reasoning_text.done", {**place, "text": text}
                part = {"type": "reasoning_text", "text": text}
                if self._envelope is not None:
                    item["encrypted_content"] = self._envelope(text)
            yield "response.content_part.done", {**place, "part": part}
            item["content"] = [part]
        yield "response.output_item.done", {"output_index": len(self.items), "item": item}
        self.items.append(item)
        self._item = None

    def _open(self, kind: str) -> Iterator[Change]:
        if kind == "message":
            empty = _text_part("", [])
            self._item = asdict(OutputMessage(id=self._new_id("msg_")))
        else:
            empty = {"type": "reasoning_text", "text": ""}
            self._item = asdict(ReasoningItem(id=self._new_id("rs_")))
        self._texts, self._logprobs = [], []
        yield "response.output_item.added", {"output_index": len(self.items), "item": dict(self._item)}
        yield "response.content_part.added", {**self._place(), "content_index": 0, "part": empty}

    def _open_call(self, call_id: str, name: str) -> Iterator[Change]:
        self._item = asdict(FunctionCall(id=self._new_id("fc_"), call_id=call_id, name=name))
        self._texts = []
        yield "response.output_item.added", {"output_index": len(self.items), "item": dict(self._item)}

    def _more_arguments(self, text: str) -> Iterator[Change]:
        self._texts.append(text)
        yield "response.function_call_arguments.delta", {**self._place(), "delta": text}

    def _place(self) -> dict[str, Any]:
        """Which item an event is about."""
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.items)}


def _text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return asdict(OutputText(logprobs=logprobs, text=text))
