"""The objects of Anthropic's answers, with every field that the published types have.

A field that means nothing here holds the value by which Anthropic says so, so no answer can lack one. A test compares
these fields with the types of Anthropic's own SDK.
"""

from __future__ import annotations

from typing import Any

import msgspec

SIGNATURE = "onecard"
"""Stands where Anthropic proves that thinking is its own; any is accepted back."""
_CALL, _USE = "call_", "toolu_"


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """Words."""

    text: str = ""
    citations: None = None


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model wrote to itself; a block that is still open has no signature."""

    thinking: str = ""
    signature: str = ""


class DirectCaller(msgspec.Struct, tag_field="type", tag="direct"):
    """The model itself called, not a program that it wrote."""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use", kw_only=True):
    """A call of one of the client's tools."""

    id: str
    name: str
    input: dict[str, Any]
    caller: DirectCaller = msgspec.field(default_factory=DirectCaller)


Block = TextBlock | ThinkingBlock | ToolUseBlock


class CacheCreation(msgspec.Struct):
    """Tokens that were put into a cache that is paid for; there is none."""

    ephemeral_1h_input_tokens: int = 0
    ephemeral_5m_input_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """What the output tokens were spent on."""

    thinking_tokens: int


class DeltaUsage(msgspec.Struct, kw_only=True):
    """The tokens of a message as its stream ends."""

    input_tokens: int
    """Without those that were found in the prefix cache."""
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    server_tool_use: None = None
    iterations: None = None
    fallback_credit: None = None


class MessageUsage(DeltaUsage, kw_only=True):
    """The tokens of a message."""

    cache_creation: CacheCreation = msgspec.field(default_factory=CacheCreation)
    inference_geo: None = None
    service_tier: str = "standard"
    speed: None = None


class MessageDelta(msgspec.Struct, kw_only=True):
    """How a message ended."""

    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None


class Message(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    """A message, whole or as its stream announces it."""

    id: str
    role: str = "assistant"
    model: str
    content: list[Block]
    stop_reason: str | None
    stop_sequence: str | None
    stop_details: None = None
    container: None = None
    context_management: None = None
    diagnostics: None = None
    usage: MessageUsage


class MessageDeltaEvent(msgspec.Struct, tag_field="type", tag="message_delta", kw_only=True):
    """The last but one event of a stream."""

    delta: MessageDelta
    context_management: None = None
    usage: DeltaUsage


class ModelInfo(msgspec.Struct, tag_field="type", tag="model", kw_only=True):
    """A model as Anthropic lists them; the context is both limits, because one bound holds for prompt and answer."""

    id: str
    display_name: str
    created_at: str = "1970-01-01T00:00:00Z"
    """The time of a release that is not known, as Anthropic writes it."""
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: None = None
    lifecycle: str = "active"
    line: None = None
    deprecated_at: None = None
    retires_at: None = None
    allowed_fallback_models: None = None


class ModelPage(msgspec.Struct, kw_only=True):
    """A page of models."""

    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None


class TokenCount(msgspec.Struct, kw_only=True):
    """The tokens of a conversation."""

    input_tokens: int
    context_management: None = None


def use_id(call_id: str) -> str:
    """A call's id in the form that Anthropic's clients know: `toolu_...`."""
    return _USE + call_id.removeprefix(_CALL)


def call_id(use_id: str) -> str:
    """The id that a template wants to see: Mistral's has nine characters and refuses any other."""
    bare = use_id.removeprefix(_USE)
    return bare if len(bare) == 9 and bare.isalnum() else use_id
