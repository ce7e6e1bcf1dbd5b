"""The objects of responses, with every field that the published schemas require, so that no answer can lack one.

`asdict` gives them as the JSON they become. A test compares them with OpenAI's and Open Responses' schemas.
"""

from __future__ import annotations

from typing import Any

import msgspec

asdict = msgspec.structs.asdict


class ResponseObject(msgspec.Struct, kw_only=True):
    """A response, from its announcement to its end."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: str = "in_progress"
    background: bool = False
    error: dict[str, Any] | None = None
    incomplete_details: dict[str, Any] | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str = "default"
    store: bool
    temperature: float
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    """Also where "auto" was asked for: nothing is ever cut."""
    usage: dict[str, Any] | None = None
    metadata: dict[str, str]


class OutputMessage(msgspec.Struct, kw_only=True):
    """Words for the user."""

    id: str
    type: str = "message"
    role: str = "assistant"
    content: list[dict[str, Any]] = msgspec.field(default_factory=list)
    status: str = "in_progress"


class ReasoningItem(msgspec.Struct, kw_only=True):
    """Words the model wrote to itself."""

    id: str
    type: str = "reasoning"
    summary: list[dict[str, Any]] = msgspec.field(default_factory=list)
    content: list[dict[str, Any]] = msgspec.field(default_factory=list)
    status: str = "in_progress"


class FunctionCall(msgspec.Struct, kw_only=True):
    """A call of one of the client's functions."""

    id: str
    type: str = "function_call"
    call_id: str
    name: str
    arguments: str = ""
    status: str = "in_progress"


class HostedItem(msgspec.Struct, kw_only=True):
    """A call of a tool that the server runs itself."""

    id: str
    type: str
    status: str = "in_progress"
    result: str | None = None


class OutputText(msgspec.Struct, kw_only=True):
    """A part of a message."""

    type: str = "output_text"
    annotations: list[Any] = msgspec.field(default_factory=list)
    logprobs: list[Any]
    text: str


class CompactionItem(msgspec.Struct, kw_only=True):
    """A conversation summed up."""

    id: str
    type: str = "compaction"
    encrypted_content: str


class CompactedResponse(msgspec.Struct, kw_only=True):
    """The answer to a request for a compaction."""

    id: str
    object: str = "response.compaction"
    created_at: int
    output: list[CompactionItem]
    usage: dict[str, Any]
