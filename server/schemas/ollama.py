"""`POST /api/chat` and `/api/generate`, in Ollama's shape: their fields, and the requests that they become.

A conversation becomes a chat request, so that messages, tools and formats mean here what they mean everywhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from server.errors import ApiError, unsupported_parameter
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest, parse_completion
from server.schemas.fields import Bool, KeepAlive, Priority
from server.schemas.messages import MAX_MESSAGES, MAX_TOOL_CALLS
from server.schemas.ollama_fields import (
    TO_OLLAMA,
    TO_TEXT,
    Format,
    Images,
    Options,
    Think,
    content,
    form,
    thinking,
)
from server.schemas.parts import Strict
from server.schemas.problems import check
from server.schemas.surface import ELSEWHERE, Surface
from server.schemas.tool_results import check_chat
from server.schemas.tools import Tools, refuse_kinds, without_effect

if TYPE_CHECKING:
    from backends.messages import Constraint, Generate, Ready
    from server.schemas.renames import Renames


class CalledFunction(Strict):
    """What an assistant called, its arguments as the object they are."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: dict[str, Any] | None = None
    index: int | None = None
    description: str | None = None


class ToolCall(Strict):
    """A call of an earlier turn; it has a number where the client kept one."""

    id: str | None = None
    type: str | None = None
    function: CalledFunction


class Message(Strict):
    """One turn."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _AnswerFields(BaseModel):
    """What conversations and single prompts share."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)
    stream: Bool = None
    """Ollama streams unless it is told not to."""
    format: Format = None
    options: Options | None = None
    think: Think = None
    logprobs: Bool = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    keep_alive: KeepAlive = None
    priority: Priority = None

    def shared(self, data: dict[str, Any]) -> dict[str, Any]:
        """The fields that become chat completions'."""
        options = {} if self.options is None else self.options.fields()
        same: dict[str, Any] = {name: data[name] for name in ("model", "logprobs", "priority") if name in data}
        same |= {} if self.top_logprobs is None else {"top_logprobs": self.top_logprobs}
        wanted = form(self.format)
        return {**same, **options, **({} if wanted is None else {"response_format": wanted}), **thinking(self.think)}


class ChatBody(_AnswerFields):
    """The body of `/api/chat`."""

    messages: Annotated[list[Message], Field(max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    """None at all: the model is loaded, or unloaded where `keep_alive` is 0."""
    tools: Tools = None
    truncate: Bool = None
    shift: Bool = None


class GenerateBody(_AnswerFields):
    """The body of `/api/generate`."""

    prompt: str | None = None
    """Empty: the model is loaded, or unloaded where `keep_alive` is 0."""
    suffix: str | None = None
    system: str | None = None
    images: Images = None
    raw: Bool = None
    truncate: Bool = None
    shift: Bool = None


@dataclass(frozen=True)
class OllamaRequest:
    """One checked request: its own fields, and what it becomes."""

    own: ChatBody | GenerateBody
    model: str
    meant: ChatRequest | CompletionRequest | None
    """None where the model is only to be loaded or to leave."""
    ignored: list[str]
    names: Renames

    @property
    def streamed(self) -> bool:
        """Lines as they come, or one object."""
        return self.own.stream is not False

    @property
    def chat(self) -> ChatRequest | None:
        """The conversation, where it is one."""
        return self.meant if isinstance(self.meant, ChatRequest) else None

    @property
    def text_bytes(self) -> int:
        """Bytes of what the model has to read for certain."""
        if isinstance(self.meant, CompletionRequest):
            return sum(map(len, self.meant.prompt))
        return 0 if self.meant is None else self.meant.text_bytes

    def left_out_by(self, ready: Ready | None) -> list[str]:
        """Names of fields that have no effect on this model."""
        return [] if self.chat is None else self.names.names(self.chat.ignored_by(ready))

    @property
    def functions(self) -> list[dict[str, Any]]:
        """The tools that the model is shown."""
        return [] if self.chat is None else self.chat.functions

    @property
    def constraint(self) -> Constraint | None:
        """What the answer has to be."""
        return None if self.chat is None else self.chat.constraint


def job_of(meant: ChatRequest | CompletionRequest, job_id: str) -> Generate:
    """The job; without a limit it goes on as long as there is room."""
    if isinstance(meant, ChatRequest):
        return meant.job(job_id)
    (job,) = meant.jobs(job_id)
    return msgspec.structs.replace(job, max_tokens=meant.max_tokens)


_NO_EFFECT = ("truncate", "shift")
"""What to do with a prompt that does not fit: it is refused here, whatever they say."""
CHAT = Surface(
    path="/api/chat",
    name="OllamaChat",
    summary="Answer a conversation in Ollama's shape",
    model=ChatBody,
    example={"messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    refused=ELSEWHERE,
    no_effect=_NO_EFFECT,
    shared=("model",),
    required=("model",),
)
GENERATE = Surface(
    path="/api/generate",
    name="OllamaGenerate",
    summary="Answer one prompt in Ollama's shape",
    model=GenerateBody,
    example={"prompt": "Why is the sky blue?"},
    refused={**ELSEWHERE, "template": ("",), "context": ([],)},
    instead={"template": "'raw' with a prompt that is rendered", "context": "/api/chat with all messages"},
    no_effect=_NO_EFFECT,
    shared=("model",),
    required=("model",),
)


def parse_ollama_chat(data: dict[str, Any]) -> OllamaRequest:
    """The checked conversation. Raises ApiError 400."""
    CHAT.refuse(data)
    own = check(ChatBody, data)
    chat = None
    if own.messages:
        body = {**own.shared(data), "messages": _messages(own.messages)}
        if own.tools is not None:
            body["tools"] = data["tools"]
        chat = TO_OLLAMA.parse(body)
        refuse_kinds(chat.tools)
        check_chat(chat.messages, open_end=False)
    inner = [*without_effect(own.tools), *_unknown(own.messages or [])]
    return _request(data, own, chat, inner, TO_OLLAMA, CHAT)


def parse_ollama_generate(data: dict[str, Any]) -> OllamaRequest:
    """The checked prompt. Raises ApiError 400."""
    GENERATE.refuse(data)
    own = check(GenerateBody, data)
    if not own.prompt and not own.images and not own.suffix:
        return _request(data, own, None, [], TO_TEXT, GENERATE)
    if own.raw or own.suffix:
        return _request(data, own, _text(own, data), [], TO_TEXT, GENERATE)
    system = [{"role": "system", "content": own.system}] if own.system else []
    asked = {"role": "user", "content": content(own.prompt, own.images)}
    chat = TO_TEXT.parse({**own.shared(data), "messages": [*system, asked]})
    return _request(data, own, chat, [], TO_TEXT, GENERATE)


def _text(own: GenerateBody, data: dict[str, Any]) -> CompletionRequest:
    """A prompt that is taken as it stands, or a gap that is filled."""
    for name in ("images", "system"):
        if getattr(own, name):
            raise unsupported_parameter(name, "together with 'raw' or 'suffix' is not supported by this server.")
    fields = own.shared(data)
    for name in ("reasoning_effort", "chat_template_kwargs", "top_logprobs"):
        fields.pop(name, None)
    fields["logprobs"] = (own.top_logprobs or 0) if own.logprobs else None
    suffix = {"suffix": own.suffix} if own.suffix else {}
    try:
        return parse_completion({**fields, "prompt": own.prompt or "", **suffix})
    except ApiError as problem:
        raise TO_TEXT.error(problem) from None


def _request(
    data: dict[str, Any],
    own: ChatBody | GenerateBody,
    meant: ChatRequest | CompletionRequest | None,
    inner: list[str],
    names: Renames,
    surface: Surface,
) -> OllamaRequest:
    model = check(_Named, data).model
    unknown = [name for name in data if name not in surface.fields]
    options = [] if own.options is None else own.options.ignored
    return OllamaRequest(own, model, meant, [*unknown, *inner, *options], names)


class _Named(BaseModel):
    """The one field that every body has."""

    model: Annotated[str, Field(strict=True)]


def _unknown(turns: list[Message]) -> list[str]:
    """Fields of messages that are unknown, each once."""
    return sorted({f"messages[].{name}" for turn in turns for name in turn.model_extra or {}})


def _messages(turns: list[Message]) -> list[dict[str, Any]]:
    """The turns of a chat request. Ollama's calls have no ids: results are given in their order, or by name."""
    found: list[dict[str, Any]] = []
    open_calls: deque[tuple[str, str]] = deque()
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": content(turn.content, turn.images)}
        if turn.thinking:
            message["reasoning_content"] = turn.thinking
        if turn.tool_calls:
            message["tool_calls"] = calls = [
                _call(call, f"call_{len(found)}_{i}") for i, call in enumerate(turn.tool_calls)
            ]
            open_calls.extend((call["id"], call["function"]["name"]) for call in calls)
        if turn.role == "tool":
            message["tool_call_id"] = turn.tool_call_id or _answered(open_calls, turn.tool_name, len(found))
            if turn.tool_name:
                message["name"] = turn.tool_name
        found.append(message)
    return found


def _call(call: ToolCall, number: str) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments or {}}
    return {"id": call.id or number, "type": "function", "function": function}


def _answered(open_calls: deque[tuple[str, str]], name: str | None, place: int) -> str:
    """The id of the call that a result answers: the first open one of its name, else the first open one."""
    found = next((call for call in open_calls if call[1] == name), open_calls[0] if open_calls else None)
    if found is None:
        return f"call_{place}"
    open_calls.remove(found)
    return found[0]
