"""The forms in which chat templates take one conversation: the usual one first, others for templates that fail with it.

Arguments of calls are objects to one template and text to the next, and nothing in a template says which; the content
beside calls is empty or none; a tool may need every key. Pure.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.formats.base import Conversation, Json


class Arguments(dict[str, Any]):
    """A call's arguments, which a template that writes them as they are writes as JSON."""

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False)


def forms(messages: list[Json], tools: list[Json]) -> Iterator[Conversation]:
    """Each form once; the first is the conversation as it is."""
    complete = [_complete(tool) for tool in tools]
    seen: list[Conversation] = []
    for shape, empty in ((_as_it_is, None), (_as_object, ""), (_as_text, ""), (_as_text, None)):
        turns = [_turn(message, shape, empty if seen else ...) for message in messages]
        form = (turns, complete if seen else tools)
        if not any(form == other and _kinds(form) == _kinds(other) for other in seen):
            seen.append(form)
            yield form


def with_arguments(messages: Any) -> Any:
    """The messages with arguments that show themselves as JSON; for the process in which the template runs."""
    if not isinstance(messages, list):
        return messages
    return [_turn(message, _as_it_is, ...) if isinstance(message, dict) else message for message in messages]


def with_parts(messages: list[Json], *, beside_calls: bool = False) -> list[Json]:
    """Every text as a list of one part, for templates that read nothing else; some index it, also where it is empty.

    The missing text beside calls stays missing unless `beside_calls` says otherwise.
    """
    return [
        {**message, "content": [{"type": "text", "text": message.get("content") or ""}]}
        if isinstance(message.get("content"), str | None)
        and (message.get("content") or beside_calls or not message.get("tool_calls"))
        else message
        for message in messages
    ]


def _kinds(form: Conversation) -> list[type]:
    """What tells forms apart that are equal to Python."""
    calls = (call for message in form[0] for call in message.get("tool_calls") or [])
    return [type(call["function"]["arguments"]) for call in calls]


def _turn(message: Json, shape: Callable[[Any], Any], empty: Any) -> Json:
    if not (calls := message.get("tool_calls")):
        return message
    shaped = [
        {**call, "function": {**call["function"], "arguments": shape(call["function"]["arguments"])}} for call in calls
    ]
    content = message.get("content") if empty is ... else message.get("content") or empty
    return {**message, "content": content, "tool_calls": shaped}


def _as_it_is(arguments: Any) -> Any:
    return Arguments(arguments) if isinstance(arguments, dict) else arguments


def _as_object(arguments: Any) -> Any:
    """Of text that was cut, what there is of an object; other text under a name."""
    if isinstance(arguments, dict):
        return Arguments(arguments)
    try:
        value = jiter.from_json(arguments.encode("utf-8", "replace"), partial_mode="trailing-strings")
    except ValueError:
        value = arguments
    return Arguments(value if isinstance(value, dict) else {"arguments": value})


def _as_text(arguments: Any) -> Any:
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


def _complete(tool: Json) -> Json:
    if not isinstance(function := tool.get("function"), dict):
        return tool
    parameters = {"type": "object", "properties": {}, "required": [], **(function.get("parameters") or {})}
    return {**tool, "function": {"description": "", **function, "parameters": parameters}}
