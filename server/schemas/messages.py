"""The messages of a conversation: what clients send, and the plain form that chat templates take.

Owns leniency towards real clients: `developer` is `system`, a late system message joins the first, neighbours of one
role become one message, tool results may be parts, an assistant's text may be missing beside its tool calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import jiter
import msgspec
from pydantic import BaseModel, BeforeValidator, Field, model_validator

from backends.messages import ChatPrompt, PromptEnd
from server.errors import ApiError
from server.schemas.media import MAX_MEDIA, MAX_MEDIA_BYTES
from server.schemas.parts import Content, Said, Strict, joined, media_apart, said
from server.schemas.problems import problem

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MESSAGES = 4096
_SAYS_MORE = frozenset(
    {
        "attachments", "audios", "documents", "experimental_attachments", "file", "files", "image", "image_url",
        "images", "video", "videos",
    }
)  # fmt: skip
MAX_TOOL_CALLS = 1024
_JOINT = "\n\n"


def arguments_text(value: Any) -> Any:
    """A call's arguments as JSON text: nothing is no arguments, and an object is what other servers' histories hold."""
    if value is None:
        return "{}"
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value


Arguments = Annotated[str, BeforeValidator(arguments_text, json_schema_input_type=str | dict[str, Any] | None)]


class CalledFunction(Strict):
    """The function an assistant called, with its arguments as JSON text."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    arguments: Arguments


class ToolCall(Strict):
    """A call an assistant made in an earlier turn."""

    id: str
    type: Literal["function"]
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        """The form templates take: arguments as an object where they are one."""
        return {
            "id": self.id,
            "type": "function",
            "function": {"name": self.function.name, "arguments": self._arguments()},
        }

    def _arguments(self) -> Any:
        text = self.function.arguments
        if not text.strip():
            return {}
        try:
            value = jiter.from_json(text.encode("utf-8", "replace"), allow_inf_nan=False)
        except ValueError:
            return text
        return {} if value is None else value if isinstance(value, dict) else text


class Message(Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: str | None = None
    prefix: bool | None = None
    """Of the last message: the answer goes on where it ends (Mistral, DeepSeek)."""
    partial: bool | None = None
    """The same (Moonshot, Qwen)."""

    @property
    def begins_answer(self) -> str | None:
        """The name of the field that says so."""
        return "prefix" if self.prefix else "partial" if self.partial else None

    @model_validator(mode="before")
    @classmethod
    def _reasoning_has_one_name(cls, value: Any) -> Any:
        """`reasoning` (vLLM, OpenRouter) and `thinking` (Ollama) come back as they were given out."""
        if not isinstance(value, dict) or value.get("role") != "assistant" or value.get("reasoning_content"):
            return value
        name = next((n for n in ("reasoning", "thinking") if isinstance(value.get(n), str)), None)
        if name is None:
            return value
        rest = {key: entry for key, entry in value.items() if key != name}
        return {**rest, "reasoning_content": value[name] or None}

    @model_validator(mode="before")
    @classmethod
    def _results_may_be_json(cls, value: Any) -> Any:
        """What a tool gives back is often handed on as the object it is."""
        if (
            isinstance(value, dict)
            and value.get("role") == "tool"
            and isinstance(content := value.get("content"), dict)
        ):
            return {**value, "content": msgspec.json.encode(content).decode()}
        return value

    @model_validator(mode="after")
    def _holds_all_it_says(self) -> Message:
        """What other servers read beside `content` is a part of what was said."""
        for name in self.model_extra or {}:
            if name in _SAYS_MORE and (self.model_extra or {})[name]:
                raise problem(
                    "unsupported_parameter",
                    "Unsupported parameter: '{param}' is not supported with this server, which reads the text of "
                    "'content'.",
                    field=f".{name}",
                )
        return self

    @model_validator(mode="after")
    def _is_complete(self) -> Message:
        if self.content is None and not self._says_something():
            given = "content" in self.model_fields_set
            raise problem(
                "invalid_type" if given else "missing_required_parameter",
                "Invalid type for '{param}': expected a string or an array of objects, but got null instead."
                if given
                else "Missing required parameter: '{param}'.",
                field=".content",
            )
        if self.role == "tool" and self.tool_call_id is None:
            raise problem("missing_required_parameter", "Missing required parameter: '{param}'.", field=".tool_call_id")
        if (self.model_extra or {}).get("function_call") is not None:
            raise problem(
                "unsupported_parameter",
                "Unsupported parameter: '{param}' is not supported by this server; use 'tool_calls'.",
                field=".function_call",
            )
        if self.tool_calls and self.role != "assistant":
            raise problem(
                "invalid_value", "Invalid value for '{param}': only an assistant calls tools.", field=".tool_calls"
            )
        return self

    def _says_something(self) -> bool:
        """An assistant's turn may hold calls, reasoning or a refusal in place of text."""
        return self.role == "assistant" and bool(self.tool_calls or self.reasoning_content or self.refusal)

    @property
    def said(self) -> Said:
        """The words, parts joined by line ends; with media the parts."""
        if isinstance(self.content, list):
            return said(self.content)
        return self.content or self.refusal or ""

    def plain(self) -> dict[str, Any]:
        """The form templates take."""
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.said}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        for key in ("tool_call_id", "name", "reasoning_content"):
            if (value := getattr(self, key)) is not None:
                message[key] = value
        return message


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ConversationFields(BaseModel):
    """The fields that say what a rendered conversation ends with: vLLM's, and those of a message itself."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    @property
    def end(self) -> PromptEnd:
        """What the prompt ends with."""
        if self.continue_final_message or self._begun is not None:
            return "message"
        return "nothing" if self.add_generation_prompt is False else "answer"

    @property
    def end_param(self) -> str:
        """The field that asks for an answer to be continued."""
        return self._begun or "continue_final_message"

    @property
    def _begun(self) -> str | None:
        messages: list[Message] = getattr(self, "messages", None) or []
        name = messages[-1].begins_answer if messages else None
        return name and f"messages[{len(messages) - 1}].{name}"

    def check_end(self, messages: list[Message]) -> None:
        """Only an assistant's text can be continued, and only the last one. Raises ApiError 400."""
        for i, message in enumerate(messages[:-1]):
            if (name := message.begins_answer) is not None:
                raise _cannot_go_on(f"messages[{i}].{name}", "only the last message can be continued.")
        if self.end != "message":
            return
        param = self.end_param
        for name, contradicts in (
            ("add_generation_prompt", self.add_generation_prompt),
            ("continue_final_message", self.continue_final_message is False),
        ):
            if contradicts:
                raise _cannot_go_on(param, f"it contradicts '{name}'.", code="invalid_parameter_combination")
        last = messages[-1]
        if last.role != "assistant" or last.tool_calls or last.content is None:
            raise _cannot_go_on(param, "the last message has to be a text of the assistant's.")


def _cannot_go_on(param: str, why: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"Invalid '{param}': {why}", param=param, code=code)


def chat_prompt(
    messages: list[Message],
    *,
    tools: list[dict[str, Any]],
    end: PromptEnd,
    template_kwargs: dict[str, bool | str | int] | None = None,
) -> ChatPrompt:
    """The conversation as a job holds it. Raises ApiError 400 where its media are too many or too large together."""
    turns, media = media_apart(conversation(messages))
    n_bytes = sum(len(medium.data) for medium in media)
    if len(media) > MAX_MEDIA or n_bytes > MAX_MEDIA_BYTES:
        told = f"Invalid 'messages': they hold {len(media)} images and sounds of {n_bytes} bytes together, and at most "
        limits = f"{MAX_MEDIA} of {MAX_MEDIA_BYTES} bytes are taken."
        raise ApiError(400, told + limits, param="messages", code="invalid_value")
    return ChatPrompt(messages=turns, tools=tools, template_kwargs=template_kwargs or {}, end=end, media=media)


def conversation(messages: list[Message]) -> list[dict[str, Any]]:
    """The turns as strict templates want them: one system message in front, no two neighbours of one role."""
    plain = [message.plain() for message in messages]
    system = [message["content"] for message in plain if message["role"] == "system"]
    turns: list[dict[str, Any]] = [{"role": "system", "content": joined(system, _JOINT)}] if system else []
    others = [message for message in plain if message["role"] != "system"]
    return turns + [_joined(group) for group in _neighbours(others)]


def _neighbours(messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Those that become one message, together."""
    group: list[dict[str, Any]] = []
    for message in messages:
        if group and not _may_merge(group[-1], message):
            yield group
            group = []
        group.append(message)
    if group:
        yield group


def _may_merge(earlier: dict[str, Any], later: dict[str, Any]) -> bool:
    """Tool results answer one call each and stay apart; so do speakers with different names."""
    return (
        earlier["role"] == later["role"]
        and later["role"] in ("user", "assistant")
        and earlier.get("name") == later.get("name")
    )


def _joined(group: list[dict[str, Any]]) -> dict[str, Any]:
    """One message of several; each text is copied once, however many there are."""
    if len(group) == 1:
        return group[0]
    merged = {**group[0], "content": joined((turn["content"] for turn in group), _JOINT)}
    if calls := [call for turn in group for call in turn.get("tool_calls", [])]:
        merged["tool_calls"] = calls
    if reasoning := [turn["reasoning_content"] for turn in group if turn.get("reasoning_content")]:
        merged["reasoning_content"] = _JOINT.join(reasoning)
    return merged


def unknown_names(messages: list[Message]) -> list[str]:
    """Fields of messages and of their parts that are unknown, as `messages[].name`, each once."""
    names = {name for message in messages for name in message.model_extra or {} if name not in ("audio", "annotations")}
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    names |= {f"content[].{name}" for part in parts for name in part.unknown}
    return [f"messages[].{name}" for name in sorted(names)]
