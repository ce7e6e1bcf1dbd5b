"""`POST /v1/messages` and `/v1/messages/count_tokens`: its fields, and the chat request one becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.errors import ApiError, missing_parameter
from server.schemas.blocks import Messages, System, left_out, messages_of, system_text, turns_of
from server.schemas.fields import StopList, TokensOrNone
from server.schemas.harmless import MessagesHarmless
from server.schemas.problems import check, problem
from server.schemas.renames import TO_MESSAGES
from server.schemas.surface import ELSEWHERE, Surface
from server.schemas.threads import Held, Thread
from server.schemas.tool_results import check_blocks
from server.schemas.tools import refuse_kinds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.messages import Generate
    from server.schemas.chat import ChatRequest

_NO_EFFECT_IN_TOOLS = frozenset({"cache_control", "eager_input_streaming", "type"})


class Thinking(BaseModel):
    """Whether the model may reason first."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None


class ToolChoice(BaseModel):
    """Which tools may or must be called."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputConfig(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class ContextEdit(BaseModel):
    """One way to shorten the conversation; only thinking of earlier turns may go, which chat templates leave out."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    type: str

    @model_validator(mode="after")
    def _asks_for_nothing(self) -> ContextEdit:
        if not self.type.startswith("clear_thinking_"):
            raise problem(
                "unsupported_value",
                "Unsupported value: '{param}': this server does not change the conversation; shorten 'messages' "
                "instead.",
                field=".type",
            )
        return self


class ContextManagement(BaseModel):
    """What may be left out of the conversation."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    edits: Annotated[list[ContextEdit], Field(max_length=16, fail_fast=True)] | None = None


class MessagesRequest(MessagesHarmless):
    """The fields of a message that chat completions have not, or otherwise."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    messages: Messages
    system: System | None = None
    max_tokens: TokensOrNone = None
    """0: the prompt is computed, to be found by later ones, and nothing is said."""
    stop_sequences: StopList | None = None
    tools: list[Any] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None
    thread: Thread | None = None
    output_format: dict[str, Any] | None = None
    """The older name of `output_config.format`."""

    @property
    def thinks(self) -> bool:
        """Reasoning is wanted; Anthropic's default is none."""
        return self.thinking is not None and self.thinking.type != "disabled"


SURFACE = Surface(
    path="/v1/messages",
    name="Messages",
    summary="Answer a conversation in Anthropic's shape",
    model=MessagesRequest,
    example={"max_tokens": 256, "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    refused={**ELSEWHERE, "compaction": (), "container": (), "mcp_servers": ([],)},
    no_effect=MessagesHarmless.model_fields,
    shared=(
        "model",
        "stream",
        "temperature",
        "top_p",
        "top_k",
        "priority",
        "keep_alive",
        "json_whitespace",
        "speculation",
    ),
    required=("model", "max_tokens"),
)
COUNT = replace(
    SURFACE,
    path="/v1/messages/count_tokens",
    name="MessagesCount",
    summary="Count the tokens of such a conversation",
    required=("model",),
    streams=False,
)


@dataclass(frozen=True)
class AskedMessage:
    """One checked request: its own fields, and the chat request it means."""

    own: MessagesRequest
    chat: ChatRequest
    ignored: list[str]
    body: dict[str, Any]
    """The JSON that says everything: what a thread holds and what the client sent."""

    def job(self, job_id: str, chat: ChatRequest) -> Generate:
        """The job; `chat` with the model's defaults."""
        job = chat.job(job_id)
        return msgspec.structs.replace(job, max_tokens=0) if self.own.max_tokens == 0 else job

    @property
    def is_held(self) -> bool:
        """The conversation is to be held under the id of its answer."""
        return self.own.thread is not None


def continued_from(data: dict[str, Any]) -> str | None:
    """The id of the answer whose thread this body continues; None where it says everything. Raises ApiError 400."""
    thread = check(_Threaded, data).thread
    return None if thread is None else thread.previous_message_id


class _Threaded(BaseModel):
    """The one field that is read before what it refers to is looked up."""

    thread: Thread | None = None


def parse_message(data: dict[str, Any], held: Held | None = None) -> AskedMessage:
    """The checked request. Raises ApiError 400."""
    asked = parse_count(data, held)
    if asked.own.max_tokens is None:
        raise missing_parameter("max_tokens")
    check_blocks(turns_of(asked.own.messages), n_held=0 if held is None else len(held.messages))
    return asked


def parse_count(data: dict[str, Any], held: Held | None = None) -> AskedMessage:
    """The checked request where its tokens are only counted. Raises ApiError 400."""
    SURFACE.refuse(data)
    own = check(MessagesRequest, data)
    if held is not None:
        data = held.continued_by(data)
        own = check(MessagesRequest, data)
    if own.thinks and own.messages[-1].role == "assistant":
        raise ApiError(
            400,
            "Invalid 'messages': with 'thinking' the last message cannot be the assistant's: thoughts come first.",
            param="messages",
            code="invalid_parameter_combination",
        )
    own_kinds = [{} if isinstance(tool, dict) and _is_function(tool) else tool for tool in own.tools or []]
    refuse_kinds(own_kinds, _RUN_BY_ANTHROPIC)
    chat = TO_MESSAGES.parse(_chat(data, own))
    unknown = [name for name in data if name not in SURFACE.fields]
    inner = [*left_out(own.messages), *_unserved(own)]
    return AskedMessage(own, chat, [*unknown, *inner, *_from_chat(chat)], data)


def _from_chat(chat: ChatRequest) -> list[str]:
    """What chat completions leave out, in this surface's words."""
    return [name for name in TO_MESSAGES.names(chat.ignored) if name not in ("thinking", "messages")]


def _unserved(own: MessagesRequest) -> Iterator[str]:
    """Fields that ask for what does not happen here."""
    if own.output_config is not None and own.output_config.effort is not None and not own.thinks:
        yield "output_config.effort"
    if own.context_management is not None and own.context_management.edits:
        yield "context_management"
    for name, part in (
        ("thinking", own.thinking),
        ("tool_choice", own.tool_choice),
        ("output_config", own.output_config),
    ):
        if part is not None:
            yield from (f"{name}.{extra}" for extra in part.model_extra or {})
    fields = {name for tool in own.tools or [] if isinstance(tool, dict) and _is_function(tool) for name in tool}
    yield from (f"tools[].{name}" for name in sorted(fields - _NO_EFFECT_IN_TOOLS - {*_TOOL_FIELDS}))


def _chat(data: dict[str, Any], own: MessagesRequest) -> dict[str, Any]:
    """The body of the chat completion that means the same."""
    chat: dict[str, Any] = {name: data[name] for name in SURFACE.shared if name in data}
    text = system_text(own.system or [])
    chat["messages"] = [*([{"role": "system", "content": text}] if text else []), *messages_of(own.messages)]
    chat["max_tokens"] = own.max_tokens or None  # chat completions say at least one
    chat["stop"] = own.stop_sequences
    chat["chat_template_kwargs"] = {"enable_thinking": own.thinks}
    if own.messages[-1].role == "assistant":  # a prefill: the model goes on where it ends
        chat["continue_final_message"] = True
    if own.tools is not None:
        chat["tools"] = [_tool(tool) for tool in own.tools]
    if (choice := own.tool_choice) is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        chat["tool_choice"] = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
        if choice.disable_parallel_tool_use is not None:
            chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    chat["response_format"] = _format((own.output_config and own.output_config.format) or own.output_format)
    if own.thinks and own.thinking is not None:
        chat["thinking_budget"] = own.thinking.budget_tokens
    if own.output_config is not None:
        chat["reasoning_effort"] = own.output_config.effort if own.thinks else None
    return {name: value for name, value in chat.items() if value is not None}


_RUN_BY_ANTHROPIC = re.compile(r"(web_search|web_fetch|code_execution|tool_search_tool_(bm25|regex))(_\d{8})?")
"""Tools that run where the model is, which Anthropic's clients offer whatever the server is; left out by name.

Those that the client runs (`bash`, `text_editor`, `memory`) have a schema that only Anthropic's models know.
"""
_TOOL_FIELDS = ("name", "description", "input_schema", "strict")


def _is_function(tool: dict[str, Any]) -> bool:
    return tool.get("type") in (None, "custom")


def _tool(tool: Any) -> Any:
    """A client's tool as a function; Anthropic's own by their kind."""
    if not isinstance(tool, dict) or not _is_function(tool):
        return tool
    names = {"input_schema": "parameters"}
    return {
        "type": "function",
        "function": {names.get(name, name): tool[name] for name in _TOOL_FIELDS if name in tool},
    }


def _format(form: dict[str, Any] | None) -> Any:
    """`output_config.format` in chat completions' shape, where a schema has a name."""
    if form is None or form.get("type") != "json_schema":
        return form
    if form.get("schema") is None:
        raise missing_parameter("output_config.format.schema")
    schema = {name: value for name, value in form.items() if name != "type"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, **schema}}
