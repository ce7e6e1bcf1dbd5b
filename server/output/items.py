"""The output items of a response as they grow: reasoning, a message, function calls, in the order they are written.

Pure: pieces in; changes out, each the kind of a streamed event and its fields. Bytes and numbers are `responses`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backends.formats.pieces import CallArguments, CallBegins, Content
from server.output.response_objects import FunctionCall, HostedItem, OutputMessage, OutputText, ReasoningItem, asdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from backends.formats.pieces import Piece

Change = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class HostedCall:
    """A call of a tool that the server runs itself, once the model has said all of it."""

    item: dict[str, Any]
    """In the response; it changes until its end."""
    output_index: int
    arguments: str

    @property
    def name(self) -> str:
        """Of the function that the model has called."""
        return str(self.item["type"]).removesuffix("_call")

    def event(self, kind: str, **fields: Any) -> Change:
        """`response.image_generation_call.generating` and so on."""
        place = {"item_id": self.item["id"], "output_index": self.output_index}
        return f"response.{self.item['type']}.{kind}", {**place, **fields}

    def ended(self, status: str, **fields: Any) -> Change:
        """The item is done, with its last fields."""
        self.item.update(status=status, **fields)
        return "response.output_item.done", {"output_index": self.output_index, "item": dict(self.item)}

    def failed(self, code: str | None, message: str, *, kind: str = "invalid_request_error") -> Change:
        """The item is done, and why there is no result."""
        return self.ended("failed", error={"type": kind, "code": code, "message": message, "param": None})


class Items:
    """`items` holds what is done; one more may be growing. `hosted` are the names of functions that the server runs."""

    def __init__(
        self,
        *,
        new_id: Callable[[str], str],
        envelope: Callable[[str], str] | None,
        hosted: Collection[str] = (),
    ) -> None:
        self.items: list[dict[str, Any]] = []
        self.waiting: list[HostedCall] = []
        """Those that the server has to run."""
        self._hosted = hosted
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
        if item["type"].removesuffix("_call") in self._hosted:
            yield from self._close_hosted(item, text, status)
            return
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

    def _close_hosted(self, item: dict[str, Any], arguments: str, status: str) -> Iterator[Change]:
        """A call that was cut is done; a whole one is to be run."""
        call = HostedCall(item, len(self.items), arguments)
        self.items.append(item)
        self._item = None
        if status == "completed":
            self.waiting.append(call)
        else:
            yield call.failed("incomplete", "The model was cut short before it had said what it wants.")

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
        if name in self._hosted:
            self._item = asdict(HostedItem(id=self._new_id("ig_"), type=f"{name}_call"))
            self._texts = []
            yield "response.output_item.added", {"output_index": len(self.items), "item": dict(self._item)}
            yield f"response.{name}_call.in_progress", self._place()
            return
        self._item = asdict(FunctionCall(id=self._new_id("fc_"), call_id=call_id, name=name))
        self._texts = []
        yield "response.output_item.added", {"output_index": len(self.items), "item": dict(self._item)}

    def _more_arguments(self, text: str) -> Iterator[Change]:
        self._texts.append(text)
        if self._item is not None and self._item["type"] == "function_call":
            yield "response.function_call_arguments.delta", {**self._place(), "delta": text}

    def _place(self) -> dict[str, Any]:
        """Which item an event is about."""
        assert self._item is not None
        return {"item_id": self._item["id"], "output_index": len(self.items)}


def _text_part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return asdict(OutputText(logprobs=logprobs, text=text))
