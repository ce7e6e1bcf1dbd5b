"""Anthropic's message threads: the server holds the conversation, a client sends an id and the new messages.

Pure: what is held and what it becomes; where it is held is `history`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, model_validator

from server.errors import ApiError, clip
from server.schemas.problems import problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.output.anthropic_objects import Block

_KEPT = ("system", "tools")
"""What a thread is made with, once; Anthropic's own SDK does not repeat it."""


class Thread(BaseModel):
    """`{"type": "create"}`, or `{"type": "continue", "previous_message_id": ...}`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    type: Literal["create", "continue"]
    previous_message_id: str | None = None

    @model_validator(mode="after")
    def _names_what_it_continues(self) -> Thread:
        if (self.type == "continue") != (self.previous_message_id is not None):
            code, sentence = (
                ("missing_required_parameter", "Missing required parameter: '{param}'.")
                if self.type == "continue"
                else ("invalid_value", "Invalid '{param}': a new thread continues nothing.")
            )
            raise problem(code, sentence, field=".previous_message_id")
        return self


@dataclass(frozen=True)
class Held:
    """A conversation as far as the server holds it, in the client's own JSON."""

    messages: list[Any]
    made_with: dict[str, Any]

    @classmethod
    def read(cls, stored: bytes) -> Held:
        """What `stored` holds, made by `kept`."""
        made_with: dict[str, Any] = msgspec.json.decode(stored)
        return cls(made_with.pop("messages"), made_with)

    def continued_by(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request that says everything itself. Raises ApiError 400."""
        for name in _KEPT:
            if data.get(name) is not None and data[name] != self.made_with.get(name):
                raise ApiError(
                    400,
                    f"'{name}' differs from what the thread was created with. Leave it out, or send the whole "
                    'conversation with \'thread\': {"type": "create"}.',
                    param=name,
                    code="thread_fingerprint_mismatch",
                    details={"error_code": "thread_fingerprint_mismatch"},
                )
        return {**data, **self.made_with, "messages": [*self.messages, *data["messages"]]}


def kept(body: Mapping[str, Any], content: Sequence[Block]) -> bytes:
    """The conversation of a whole body with its answer, to be held."""
    made_with = {name: body[name] for name in _KEPT if body.get(name) is not None}
    return msgspec.json.encode({**made_with, "messages": _grown(body["messages"], content)})


def _grown(messages: Sequence[Any], content: Sequence[Block]) -> list[Any]:
    """The messages and the answer; one that goes on where the assistant's text ends is one turn with it."""
    answer = msgspec.to_builtins(list(content))
    last = messages[-1]
    if last["role"] != "assistant":
        return [*messages, {"role": "assistant", "content": answer}]
    begun = [{"type": "text", "text": last["content"]}] if isinstance(last["content"], str) else [*last["content"]]
    if begun and answer and begun[-1]["type"] == answer[0]["type"] == "text":
        begun[-1:] = [{**begun[-1], "text": begun[-1]["text"] + answer.pop(0)["text"]}]
    return [*messages[:-1], {**last, "content": [*begun, *answer]}]


def not_found(previous: str) -> ApiError:
    """The server holds no such conversation; Anthropic's SDK then sends the whole of it again."""
    return ApiError(
        404,
        f"No thread was found for 'previous_message_id' '{clip(previous)}'. Threads are held in memory for a while; "
        'send the whole conversation with \'thread\': {"type": "create"}.',
        param="thread.previous_message_id",
        code="thread_not_found",
        details={"error_code": "thread_not_found"},
    )
