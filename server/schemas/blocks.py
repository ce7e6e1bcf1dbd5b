"""Anthropic's messages and their blocks: what clients send, and the chat messages they become.

Owns leniency towards real clients: thinking of another server is left out by name, so is what its own tools said.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from server.output.anthropic_objects import call_id
from server.schemas.media import medium_of, read_kind
from server.schemas.messages import MAX_MESSAGES
from server.schemas.parts import MAX_PARTS, Said, Strict, joined, picture, words
from server.schemas.problems import problem, wrong_type
from server.schemas.tool_results import Turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backends.messages import Medium

BILLING = "x-anthropic-billing-header"
"""Claude Code puts a line that begins so in front of its system prompt; it changes with every request, so that no
cached prefixes could be used again."""
_LEFT_OUT = re.compile(r"redacted_thinking|server_tool_use|mcp_tool_use|[a-z_]{1,32}_tool_result")
"""Thinking of another server, and what its own tools were asked and said; mostly only its maker can read them."""
_ELSEWHERE = ("compaction", "tool_addition", "tool_removal", "fallback")
"""Blocks that stand for a part of the conversation that only their maker can read, or that change the tools."""
_HARMLESS = frozenset({"cache_control", "citations", "caller", "signature"})


class TextBlock(Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageBlock(Strict):
    """An image, where some model reads them; else it is a block of another kind."""

    type: Literal["image"]
    source: Any = None

    @model_validator(mode="after")
    def _is_readable(self) -> ImageBlock:
        _ = self.medium
        return self

    @cached_property
    def medium(self) -> Medium:
        """What was sent."""
        return medium_of(self.type, {"source": self.source})


class ThinkingBlock(Strict):
    """What the model wrote to itself in an earlier turn."""

    type: Literal["thinking"]
    thinking: str


def _input(value: Any) -> Any:
    """Of a call without arguments some clients keep nothing."""
    return {} if value is None or value == "" else value


class ToolUseBlock(Strict):
    """A call an assistant made."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: Annotated[dict[str, Any], BeforeValidator(_input, json_schema_input_type=dict[str, Any] | None)]


class OtherBlock(Strict):
    """A block of a kind that this server never makes: left out where it is its maker's own, else refused."""

    type: str

    @model_validator(mode="after")
    def _may_be_left_out(self) -> OtherBlock:
        if self.type in _ELSEWHERE:
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': what blocks of this type stand for is not known to this server; send "
                "the messages and tools themselves.",
                field=".type",
            )
        if not _LEFT_OUT.fullmatch(self.type):
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': blocks of this type are not supported by this server; send blocks of "
                "type 'text'.",
                field=".type",
            )
        return self


_TAGS = {"text": "<text>", "image": "<image>", "thinking": "<thinking>", "tool_use": "<use>", "tool_result": "<result>"}


def _block_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "image" and read_kind(kind) is None:
        return "<other>"
    return _TAGS.get(kind, "<other>") if isinstance(kind, str) else "<other>"


def _as_blocks(value: Any) -> Any:
    """A text is one block of text."""
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise wrong_type("a string or an array of objects", value)
    return value


_Shown = Annotated[
    Annotated[TextBlock, Tag("<text>")] | Annotated[ImageBlock, Tag("<image>")] | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(lambda value: tag if (tag := _block_tag(value)) in ("<text>", "<image>") else "<other>"),
]


def _no_result(value: Any) -> Any:
    return [] if value is None else _as_blocks(value)


class ToolResultBlock(Strict):
    """What a called tool answered."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1)]
    content: Annotated[
        list[_Shown],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_no_result, json_schema_input_type=str | list[_Shown] | None),
    ] = Field(default_factory=list)
    is_error: bool | None = None

    @property
    def said(self) -> Said:
        """The answer; that of an error says so, because chat templates have no other place for it."""
        answer = _said(self.content)
        text = answer if isinstance(answer, str) else ""
        says_so = not self.is_error or "error" in text.partition("\n")[0].lower()
        return answer if says_so else f"Error: {answer}" if isinstance(answer, str) else joined(["Error:", answer], "")


_Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ImageBlock, Tag("<image>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[ToolUseBlock, Tag("<use>")]
    | Annotated[ToolResultBlock, Tag("<result>")]
    | Annotated[OtherBlock, Tag("<other>")],
    Discriminator(_block_tag),
]


class Message(Strict):
    """One turn. A system message in the middle is folded in as chat completions do."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[_Block],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[_Block]),
    ]
    clear_at: Literal["next_user_message", "never"] | None = None
    """When a system message is no longer shown."""
    output_config: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _turns_are_alike(self) -> Message:
        if self.output_config:
            raise problem(
                "unsupported_parameter",
                "Unsupported parameter: '{param}' is not supported by this server; use 'output_config' of the request.",
                field=".output_config",
            )
        return self

    def messages(self) -> Iterator[dict[str, Any]]:
        """The chat messages: an assistant's turn is one, each tool's answer is one of its own."""
        if self.role == "assistant":
            yield self._assistant()
            return
        results = [block for block in self.content if isinstance(block, ToolResultBlock)]
        for block in results:
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": block.said}
        if not results or any(isinstance(block, TextBlock | ImageBlock) for block in self.content):
            yield {"role": self.role, "content": _said(self.content)}

    def _assistant(self) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": _said(self.content),
        }
        if thoughts := [
            block.thinking for block in self.content if isinstance(block, ThinkingBlock) and block.thinking
        ]:
            message["reasoning_content"] = "\n\n".join(thoughts)
        if uses := [_call(block) for block in self.content if isinstance(block, ToolUseBlock)]:
            message["tool_calls"] = uses
        return message


def _said(blocks: Iterable[Strict]) -> Said:
    """What blocks of words and images say."""
    shown = [block for block in blocks if isinstance(block, TextBlock | ImageBlock)]
    if all(isinstance(block, TextBlock) for block in shown):
        return "\n".join(block.text for block in shown if isinstance(block, TextBlock))
    return [picture(block.medium) if isinstance(block, ImageBlock) else words(block.text) for block in shown]


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
System = Annotated[
    list[TextBlock],
    Field(max_length=MAX_PARTS, fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock]),
]


def system_text(blocks: Iterable[TextBlock]) -> str:
    """The system prompt, without the line that is about billing."""
    return "\n\n".join(block.text for block in blocks if not block.text.startswith(BILLING))


def messages_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The chat messages that are shown, in order, calls under the ids that templates know."""
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    shown = [message for i, message in enumerate(messages) if message.clear_at != "next_user_message" or i > last_user]
    return [_with_bare_ids(plain) for message in shown for plain in message.messages()]


def _with_bare_ids(message: dict[str, Any]) -> dict[str, Any]:
    for call in message.get("tool_calls", ()):
        call["id"] = call_id(call["id"])
    if "tool_call_id" in message:
        message["tool_call_id"] = call_id(message["tool_call_id"])
    return message


def turns_of(messages: Iterable[Message]) -> Iterator[Turn]:
    """What the messages have to do with calls."""
    for i, message in enumerate(messages):
        for plain in message.messages():
            calls = [call["id"] for call in plain.get("tool_calls", [])]
            yield Turn(i, plain["role"], calls, plain.get("tool_call_id"))


def left_out(messages: Iterable[Message]) -> list[str]:
    """What is not served of these messages, each once: kinds as `content[kind]`, fields as `content[].name`."""
    blocks = [block for message in messages for block in message.content]
    inner = [entry for block in blocks if isinstance(block, ToolResultBlock) for entry in block.content]
    everything = [*blocks, *inner]
    kinds = {f"content[{block.type}]" for block in everything if isinstance(block, OtherBlock)}
    known = [block for block in everything if not isinstance(block, OtherBlock)]
    unknown = {f"content[].{name}" for block in known for name in block.model_extra or {} if name not in _HARMLESS}
    unknown |= {f"messages[].{name}" for message in messages for name in message.model_extra or {}}
    return sorted(kinds | unknown)
