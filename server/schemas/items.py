"""The input items of a response: what clients send, and the chat messages they become.

Owns leniency towards real clients: calls of custom tools are calls like others, and reasoning comes back as text or in
the envelope it was sent in. Items that hold nothing the model could read are left out by name; others are refused.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from server.errors import clip
from server.output.compaction import opened
from server.schemas.messages import MAX_MESSAGES, Arguments
from server.schemas.parts import MAX_PARTS, Said, Strict, TextPart, joined, said
from server.schemas.problems import problem, wrong_type

if TYPE_CHECKING:
    from collections.abc import Iterable

_ENVELOPE = "onecard-reasoning:"
_INSTEAD = {
    "compaction_trigger": "POST /v1/responses/compact",
    "configuration_update": "the fields 'reasoning' and 'text' of the request",
}
"""Items that change what a request means, and what does the same here."""
_WITHOUT_CONTENT = frozenset({"ghost_snapshot", "mcp_list_tools", "web_search_call"})
"""Notes that clients repeat from earlier turns: a search without its results, a list of tools, a client's own state."""
_TEXT_ONLY = frozenset({"input_audio", "input_file", "input_image", "input_video"})
_HARMLESS = frozenset({"namespace", "caller", "name", "phase", "created_by"})


def wrapped(reasoning: str) -> str:
    """Reasoning as `encrypted_content`: an envelope for clients that send only this back, and no secret."""
    return _ENVELOPE + base64.b64encode(reasoning.encode()).decode("ascii")


def _unwrapped(content: str | None) -> str:
    """What an envelope of ours holds; nothing for another server's."""
    if content is None or not content.startswith(_ENVELOPE):
        return ""
    try:
        return base64.b64decode(content[len(_ENVELOPE) :], validate=True).decode()
    except ValueError:
        return ""


class Part(TextPart):
    """One piece of an item."""

    kinds = ("input_text", "output_text", "text", "summary_text", "reasoning_text")

    def stored(self) -> dict[str, Any]:
        """The form in which parts of a user's are listed."""
        if self.medium is None:
            return {"type": "input_text", "text": self.plain}
        return {"type": self.type, **(self.model_extra or {})}


class ThoughtPart(Part):
    """One piece of reasoning."""

    takes_media = False


def _string_or_parts(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise wrong_type("a string or an array of objects", value)
    return value


Text = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True), Tag("<parts>")],
    Discriminator(lambda value: "<text>" if isinstance(value, str) else "<parts>"),
    BeforeValidator(_string_or_parts),
]


def _said(text: str | list[Part]) -> Said:
    return said(text) if isinstance(text, list) else text


def _listed(text: str | list[Part]) -> str | list[dict[str, Any]]:
    """As it is listed: words as one text, with media the parts."""
    is_words = isinstance(_said(text), str)
    return [part.stored() for part in text] if isinstance(text, list) and not is_words else str(_said(text))


def _words(thoughts: list[ThoughtPart] | None) -> str:
    return "\n".join(part.plain for part in thoughts or [])


def _as_output(part: dict[str, Any]) -> dict[str, Any]:
    """A part of an assistant's message as it is listed."""
    if part["type"] != "input_text":
        return part
    return {"type": "output_text", "text": part["text"], "annotations": [], "logprobs": []}


class MessageItem(Strict):
    """A message of anybody."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def message(self) -> dict[str, Any] | None:
        """The chat message."""
        return {"role": self.role, "content": _said(self.content)}

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        listed = _listed(self.content)
        parts = [{"type": "input_text", "text": listed}] if isinstance(listed, str) else listed
        if self.role == "assistant":
            parts = [_as_output(part) for part in parts]
        return {"id": self.id, "type": "message", "role": self.role, "status": "completed", "content": parts}


class CallItem(Strict):
    """A call an assistant made; a custom tool's input is its only argument."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Arguments | None = None
    input: str | None = None
    id: str | None = None
    status: str | None = None

    @model_validator(mode="after")
    def _has_arguments(self) -> CallItem:
        name = "arguments" if self.type == "function_call" else "input"
        if getattr(self, name) is None and (name == "input" or name not in self.model_fields_set):
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=f".{name}")
        return self

    def message(self) -> dict[str, Any]:
        """The chat message."""
        function = {"name": self.name, "arguments": self._arguments()}
        call = {"id": self.call_id, "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def _arguments(self) -> str:
        if self.type == "function_call":
            return self.arguments or ""
        return msgspec.json.encode({"input": self.input}).decode()

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        said = {"arguments": self.arguments or "{}"} if self.type == "function_call" else {"input": self.input}
        status = {"status": "completed"} if self.type == "function_call" else {}
        return {"id": self.id, "type": self.type, "call_id": self.call_id, "name": self.name, **said, **status}


class ImageCallItem(Strict):
    """An image that was drawn in an earlier turn: the call and what the tool has answered."""

    type: Literal["image_generation_call"]
    id: str | None = None
    status: str | None = None
    result: str | None = None
    revised_prompt: str | None = None

    def message(self) -> list[dict[str, Any]]:
        """The chat messages; the image itself is not shown to the model."""
        call_id = self.id or "image"
        call = CallItem(
            type="function_call",
            call_id=call_id,
            name="image_generation",
            arguments=msgspec.json.encode({"prompt": self.revised_prompt or "an image"}).decode(),
        )
        said = "The image was drawn, and the user sees it." if self.result else "No image was drawn."
        return [call.message(), {"role": "tool", "tool_call_id": call_id, "content": said}]

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        told = {"status": self.status or "completed", "result": self.result, "revised_prompt": self.revised_prompt}
        return {"id": self.id, "type": self.type, **told}


class OutputItem(Strict):
    """What a tool answered; without the id of a call it is what a tool says that the client has called itself."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Annotated[str, Field(min_length=1)] | None = None
    name: str | None = None
    output: Text
    id: str | None = None
    status: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _output_may_be_json(cls, value: Any) -> Any:
        """What a tool gives back is often handed on as the object it is."""
        if isinstance(value, dict) and isinstance(output := value.get("output"), dict):
            return {**value, "output": msgspec.json.encode(output).decode()}
        return value

    @model_validator(mode="after")
    def _answers_a_call(self) -> OutputItem:
        if self.call_id is None and self.type == "custom_tool_call_output":
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=".call_id")
        return self

    def message(self) -> dict[str, Any] | None:
        """The chat message."""
        answer = _said(self.output)
        if self.call_id is None:
            named = f"{self.name}: {answer}" if isinstance(answer, str) else joined([f"{self.name}:", answer], "")
            return {"role": "user", "content": named if self.name else answer}
        return {"role": "tool", "tool_call_id": self.call_id, "content": answer}

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        status = {"status": "completed"} if self.type == "function_call_output" else {}
        return {"id": self.id, "type": self.type, "call_id": self.call_id, "output": _listed(self.output), **status}


class ReasoningItem(Strict):
    """What the model wrote to itself in an earlier turn."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: Annotated[list[ThoughtPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    content: Annotated[list[ThoughtPart], Field(max_length=MAX_PARTS, fail_fast=True)] | None = None
    encrypted_content: str | None = None
    status: str | None = None

    @property
    def text(self) -> str:
        """The reasoning, from wherever it is."""
        return _words(self.content) or _unwrapped(self.encrypted_content) or _words(self.summary)

    def message(self) -> dict[str, Any] | None:
        """The chat message; none where nothing readable came back."""
        return {"role": "assistant", "content": None, "reasoning_content": self.text} if self.text else None

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        summary = [{"type": "summary_text", "text": part.plain} for part in self.summary or []]
        content = [{"type": "reasoning_text", "text": self.text}] if self.text else []
        return {"id": self.id, "type": "reasoning", "summary": summary, "content": content}


class CompactionItem(Strict):
    """A conversation that was summed up by `/v1/responses/compact`; another server's cannot be read."""

    type: Literal["compaction", "compaction_summary"]
    encrypted_content: str
    id: str | None = None

    @model_validator(mode="after")
    def _is_ours(self) -> CompactionItem:
        if opened(self.encrypted_content) is None:
            raise problem(
                "invalid_value",
                "Invalid '{param}': it was not made by this server and cannot be read; send the conversation itself.",
                field=".encrypted_content",
            )
        return self

    def message(self) -> dict[str, Any] | None:
        """The chat message that stands for the conversation."""
        return {"role": "user", "content": opened(self.encrypted_content)}

    def stored(self) -> dict[str, Any]:
        """The form in which input items are listed."""
        return {"id": self.id, "type": "compaction", "encrypted_content": self.encrypted_content}


class ReferenceItem(Strict):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"] | None = None
    id: str


class OtherItem(Strict):
    """An item of a kind that this server never makes: left out where it holds nothing, else refused."""

    type: str

    @model_validator(mode="after")
    def _may_be_left_out(self) -> OtherItem:
        if (instead := _INSTEAD.get(self.type)) is not None:
            raise problem(
                "unsupported_value", "Unsupported value: '{param}': use {instead}.", instead=instead, field=".type"
            )
        if self.type not in _WITHOUT_CONTENT:
            why = "this server reads text" if self.type in _TEXT_ONLY else "this server makes and reads none"
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': items of type '{kind}' are not supported, {why}; send what they say as "
                "messages, or the calls and results of functions.",
                kind=clip(self.type),
                why=why,
                field=".type",
            )
        return self


_TAGS = {
    "message": "<message>",
    "function_call": "<call>",
    "custom_tool_call": "<call>",
    "function_call_output": "<output>",
    "custom_tool_call_output": "<output>",
    "image_generation_call": "<image>",
    "reasoning": "<reasoning>",
    "item_reference": "<reference>",
    "compaction": "<compaction>",
    "compaction_summary": "<compaction>",
}


def _item_tag(value: Any) -> str:
    if not isinstance(value, dict):
        return "<other>"
    kind = value.get("type")
    if kind is None:
        return "<reference>" if "id" in value and "role" not in value else "<message>"
    return _TAGS.get(kind, "<other>") if isinstance(kind, str) else "<other>"


Item = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[CallItem, Tag("<call>")]
    | Annotated[ImageCallItem, Tag("<image>")]
    | Annotated[OutputItem, Tag("<output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ReferenceItem, Tag("<reference>")]
    | Annotated[CompactionItem, Tag("<compaction>")]
    | Annotated[OtherItem, Tag("<other>")],
    Discriminator(_item_tag),
]
Items = Annotated[list[Item], Field(max_length=MAX_MESSAGES, fail_fast=True)]


def messages_of(items: Iterable[Any]) -> list[dict[str, Any]]:
    """The chat messages of checked items, in order."""
    made = [item.message() for item in items if not isinstance(item, OtherItem | ReferenceItem)]
    listed = [found if isinstance(found, list) else [found] for found in made if found is not None]
    return [message for messages in listed for message in messages]


def left_out(items: Iterable[Any]) -> list[str]:
    """What is not served of these items, each once: kinds as `input[kind]`, fields as `input[].name`."""
    kinds = {f"input[{item.type}]" for item in items if isinstance(item, OtherItem)}
    sealed = {
        "input[].encrypted_content"
        for item in items
        if isinstance(item, ReasoningItem) and item.encrypted_content and not item.text
    }
    known = [item for item in items if not isinstance(item, OtherItem)]
    unknown = {f"input[].{name}" for item in known for name in item.model_extra or {} if name not in _HARMLESS}
    return sorted(kinds | sealed | unknown)
