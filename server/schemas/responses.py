"""`POST /v1/responses`, compaction and counting: the chat request that a body becomes, after what came before."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import TypeAdapter

from server.errors import ApiError, clip, missing_parameter
from server.output.compaction import ASK
from server.output.response_objects import ResponseObject, asdict
from server.schemas.harmless import ResponseHarmless
from server.schemas.hosted import Wishes, as_choice, as_function
from server.schemas.items import Item, OtherItem, ReferenceItem, left_out, messages_of
from server.schemas.problems import check
from server.schemas.renames import TO_RESPONSES
from server.schemas.response_fields import COMPACT, SURFACE, ResponseRequest
from server.schemas.surface import Use
from server.schemas.tool_results import check_items
from server.schemas.tools import refuse_kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from server.schemas.chat import ChatRequest

_ITEM: TypeAdapter[Any] = TypeAdapter(Item)


@dataclass(frozen=True)
class Draft:
    """A request whose own fields are checked, before what it refers to was looked up."""

    data: dict[str, Any]
    own: ResponseRequest
    unused: Sequence[str] = ()
    """Names of fields that were taken out before."""

    @property
    def references(self) -> list[str]:
        """Ids of the items that are meant, not sent."""
        return [item.id for item in self.own.input if isinstance(item, ReferenceItem)]

    def complete(
        self, *, before: bytes | None, items: Mapping[str, dict[str, Any]], hosted: Wishes | None = None
    ) -> AskedResponse:
        """The request after the turns in `before` (JSON), with the items it refers to. Raises ApiError 400.

        `hosted` are the tools that this server runs for it.
        """
        hosted = hosted or {}
        earlier: list[dict[str, Any]] = [] if before is None else msgspec.json.decode(before)
        turns = [*earlier, *messages_of(_resolved(self.own.input, items))]
        chat = TO_RESPONSES.parse(_chat(self.data, self.own, turns, hosted))
        unknown = [name for name in self.data if name not in SURFACE.fields]
        ignored = [
            *self.unused,
            *unknown,
            *left_out(self.own.input),
            *_unserved(self.own),
            *(f"tools[{kind}].{name}" for kind, wish in hosted.items() for name in wish.ignored),
            *TO_RESPONSES.names(chat.ignored),
        ]
        return AskedResponse(self.own, chat, turns, ignored, hosted)


@dataclass(frozen=True)
class AskedResponse:
    """One checked request: its own fields, and the chat request it means."""

    own: ResponseRequest
    chat: ChatRequest
    turns: list[dict[str, Any]]
    """The conversation so far as chat messages, without the instructions."""
    ignored: list[str]
    hosted: Wishes = field(default_factory=dict)
    """The tools that this server runs for it."""

    def check_results(self) -> None:
        """Every call is answered, and no other. Raises ApiError 400."""
        check_items(self.turns)

    @property
    def wants_envelope(self) -> bool:
        """Reasoning is asked for in the form that comes back."""
        return "reasoning.encrypted_content" in (self.own.include or [])

    @property
    def is_stored(self) -> bool:
        """The response can be referred to later; OpenAI's default."""
        return self.own.store is not False

    @property
    def _summary(self) -> str | None:
        """The kind of summary that was asked for, as OpenAI repeats it; reasoning itself comes whole."""
        asked = self.own.reasoning
        return None if asked is None else asked.summary or asked.generate_summary

    def opening(self, response_id: str, model: str, *, created: int) -> dict[str, Any]:
        """The response object before anything was said; `created` in Unix seconds."""
        own, chat = self.own, self.chat
        form = (own.text and own.text.format) or {"type": "text"}
        opening = ResponseObject(
            id=response_id,
            created_at=created,
            instructions=own.instructions,
            max_output_tokens=own.max_output_tokens,
            max_tool_calls=own.max_tool_calls,
            model=model,
            output=[],
            parallel_tool_calls=chat.parallel_tool_calls is not False,
            previous_response_id=own.previous_response_id,
            prompt_cache_key=own.prompt_cache_key,
            reasoning={"effort": chat.reasoning_effort, "summary": self._summary},
            safety_identifier=own.safety_identifier,
            store=self.is_stored,
            temperature=1.0 if chat.temperature is None else chat.temperature,
            presence_penalty=chat.presence_penalty or 0.0,
            frequency_penalty=chat.frequency_penalty or 0.0,
            text={"format": form, "verbosity": (own.text and own.text.verbosity) or "medium"},
            tool_choice=own.tool_choice or "auto",
            tools=[_shown(tool) for tool in own.tools or [] if tool.get("type") in ("function", *self.hosted)],
            top_logprobs=chat.top_logprobs or 0,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            metadata=own.metadata or {},
        )
        return {**asdict(opening), **({} if chat.user is None else {"user": chat.user})}

    def inputs(self, new_id: Callable[[str], str]) -> list[dict[str, Any]]:
        """The input items as they are listed later, with ids."""
        kept = [item.stored() for item in self.own.input if not isinstance(item, OtherItem | ReferenceItem)]
        return [{**item, "id": item["id"] or new_id(_PREFIXES[item["type"]])} for item in kept]


_PREFIXES = {
    "message": "msg_",
    "reasoning": "rs_",
    "function_call": "fc_",
    "function_call_output": "fco_",
    "custom_tool_call": "ctc_",
    "custom_tool_call_output": "ctco_",
    "image_generation_call": "ig_",
    "compaction": "cmp_",
    "compaction_summary": "cmp_",
}


def parse_compact(data: dict[str, Any]) -> Draft:
    """A request to sum a conversation up. Raises ApiError 400."""
    SURFACE.refuse(data)
    if data.get("model") is None:
        raise missing_parameter("model")
    check(ResponseHarmless, data)
    check(ResponseRequest, {name: value for name, value in data.items() if name in COMPACT.fields})
    kept = {name: value for name, value in data.items() if COMPACT.fields.get(name) is Use.HONOURED}
    own = check(ResponseRequest, kept)
    refers = own.previous_response_id is not None or any(isinstance(item, ReferenceItem) for item in own.input)
    if not refers and not any(map(_says_something, messages_of(own.input))):
        raise _nothing_said() if own.input else missing_parameter("input")
    return Draft(kept, own, [name for name in data if name not in COMPACT.fields])


def _says_something(turn: Mapping[str, Any]) -> bool:
    """Whether a message holds more than white space."""
    content = turn.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return bool(turn.get("tool_calls")) or any(part.get("type") != "text" or part["text"].strip() for part in parts)


def _nothing_said() -> ApiError:
    return ApiError(
        400, "Invalid 'input': it says nothing that could be summed up.", param="input", code="invalid_value"
    )


def summing_up(asked: AskedResponse, *, max_tokens: int) -> ChatRequest:
    """The chat request that asks for the summary. Raises ApiError 400."""
    ask = {"role": "user", "content": ASK}
    chat = _chat({"model": asked.chat.model}, asked.own, [*asked.turns, ask], {})
    limits = {"max_tokens": max_tokens, "chat_template_kwargs": {"enable_thinking": False}}
    wishes = {"priority": asked.chat.priority, "keep_alive": asked.chat.keep_alive}
    return TO_RESPONSES.parse(
        {**chat, **limits, **{name: value for name, value in wishes.items() if value is not None}}
    )


def turns_of(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chat messages that items of our own making mean; a call that was cut can not be answered."""
    kept = [item for item in items if item["status"] != "incomplete" or not item["type"].endswith("_call")]
    return messages_of([_ITEM.validate_python(item) for item in kept])


def _shown(tool: dict[str, Any]) -> dict[str, Any]:
    """A function as the response repeats it, with the fields that OpenAI always has."""
    if tool["type"] != "function":
        return tool
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters") or {},
        "strict": bool(tool.get("strict")),
    }


def parse_response(data: dict[str, Any]) -> Draft:
    """The request, its own fields checked. Raises ApiError 400."""
    SURFACE.refuse(data)
    own = check(ResponseRequest, data)
    refuse_kinds(own.tools, _OF_CODEX)
    return Draft(data, own)


_OF_CODEX = re.compile(
    r"web_search(_preview)?(_\d{4}_\d\d_\d\d)?|custom|namespace|local_shell|tool_search|image_generation"
)
"""Tools that Codex offers whatever the server is; they are left out by name, and it gets on without them."""


def _resolved(items: Sequence[Any], known: Mapping[str, dict[str, Any]]) -> list[Any]:
    """The items, references replaced by what they mean. Raises ApiError 400."""
    resolved: list[Any] = []
    for i, entry in enumerate(items):
        if not isinstance(entry, ReferenceItem):
            resolved.append(entry)
        elif entry.id in known:
            resolved.append(_ITEM.validate_python(known[entry.id]))
        else:
            raise ApiError(
                400,
                f"Item with id '{clip(entry.id)}' not found. Items are kept with stored responses for a while only.",
                param=f"input[{i}].id",
                code="item_not_found",
            )
    return resolved


def _unserved(own: ResponseRequest) -> list[str]:
    """Fields that ask for what does not happen here."""
    reasoning = own.reasoning
    asked = [
        ("reasoning.summary", reasoning is not None and (reasoning.summary or reasoning.generate_summary)),
        ("truncation", own.truncation == "auto"),
    ]
    extra = [f"reasoning.{name}" for name in (reasoning.model_extra if reasoning is not None else None) or {}]
    extra += [f"text.{name}" for name in (own.text.model_extra if own.text is not None else None) or {}]
    return [*(name for name, is_asked in asked if is_asked), *extra]


def _chat(
    data: Mapping[str, Any], own: ResponseRequest, turns: Sequence[dict[str, Any]], hosted: Wishes
) -> dict[str, Any]:
    """The body of the chat completion that means the same."""
    system = [{"role": "system", "content": own.instructions}] if own.instructions else []
    chat: dict[str, Any] = {name: data[name] for name in SURFACE.shared if name in data}
    # Nothing said yet is a turn without words: templates want a user's.
    chat["messages"] = [*system, *(turns or [{"role": "user", "content": ""}])]
    chat["max_tokens"] = own.max_output_tokens
    if own.tools is not None:
        chat["tools"] = [as_function(_tool(tool), hosted) for tool in own.tools]
    chat["tool_choice"] = _choice(as_choice(own.tool_choice, hosted))
    if own.reasoning is not None:
        chat["reasoning_effort"] = own.reasoning.effort
    if own.text is not None:
        chat["verbosity"] = own.text.verbosity
        chat["response_format"] = _format(own.text.format)
    if "message.output_text.logprobs" in (own.include or []):
        chat["logprobs"] = True
    elif chat.get("top_logprobs") == 0:
        del chat["top_logprobs"]
    return {name: value for name, value in chat.items() if value is not None}


def _tool(tool: Any) -> Any:
    """A function in chat completions' shape; anything else as it is."""
    if not isinstance(tool, dict) or tool.get("type") != "function":
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _choice(choice: str | dict[str, Any] | None) -> Any:
    """`tool_choice` in chat completions' shape. Raises ApiError 400 for tools of the provider's own."""
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if kind == "allowed_tools":
        tools = choice.get("tools")
        named = [_named(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": named}}
    raise ApiError(
        400,
        "Invalid 'tool_choice': this server knows 'none', 'auto', 'required', and objects of type 'function' and "
        "'allowed_tools'.",
        param="tool_choice",
        code="invalid_value",
    )


def _named(tool: Any) -> Any:
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"type": "function", "function": {"name": tool.get("name")}}
    return tool


def _format(form: dict[str, Any] | None) -> Any:
    """`text.format` in chat completions' shape, where a schema lies one level deeper."""
    if form is None or form.get("type") != "json_schema":
        return form
    if form.get("schema") is None:
        raise missing_parameter("text.format.schema")
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}
