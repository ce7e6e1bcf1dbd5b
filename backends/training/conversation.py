"""One conversation of a training file, as OpenAI writes them: checked, in the form that chat templates take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jiter

from backends.training.lines import ExampleError, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

MAX_MESSAGES: Final = 4096
_ROLES: Final[Mapping[str, str]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_OF_EXAMPLE: Final = frozenset({"messages", "tools", "parallel_tool_calls"})
_OF_PLAIN: Final = frozenset({"role", "content"})
_OF_MESSAGE: Final = frozenset(
    {"role", "content", "name", "weight", "tool_calls", "tool_call_id", "reasoning_content", "refusal"}
)


class Conversation(NamedTuple):
    """Messages as `backends.messages.ChatPrompt` holds them."""

    messages: list[dict[str, Any]]
    learnt: tuple[bool, ...]
    """Per message: whether it is an answer to learn."""
    tools: list[dict[str, Any]]


def conversation(value: Mapping[str, Any]) -> Conversation:
    """Check one example. Raises ExampleError."""
    if not value.keys() <= _OF_EXAMPLE:
        unknown = sorted(value.keys() - _OF_EXAMPLE)
        hint = "use tools" if "functions" in unknown else "a chat example has messages and tools"
        raise ExampleError(f"it has {shown(unknown)}, which is not known. hint: {hint}")
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ExampleError('it has no messages. hint: {"messages": [{"role": "user", "content": ...}, ...]}')
    if len(messages) > MAX_MESSAGES:
        raise ExampleError(f"it has {len(messages)} messages, and may have {MAX_MESSAGES}")
    plain: list[dict[str, Any]] = []
    learnt: list[bool] = []
    asked: set[str] = set()
    for i, message in enumerate(messages):
        at = f"messages[{i}]"
        turn, learns = _plain(message) or _message(at, message)
        _check_order(at, turn, plain[-1]["role"] if plain else None, asked)
        if "tool_calls" in turn:
            asked.update(call["id"] for call in turn["tool_calls"])
        plain.append(turn)
        learnt.append(learns)
    if plain[-1]["role"] != "assistant":
        raise ExampleError(f"it ends with the role {plain[-1]['role']}, and the last message has to be an answer")
    if not any(learnt):
        raise ExampleError("every answer has the weight 0, so nothing is learnt of it. hint: leave the line out")
    return Conversation(plain, tuple(learnt), _tools(value.get("tools")))


def _plain(message: Any) -> tuple[dict[str, Any], bool] | None:
    """The same as `_message`, of one that has a role and words alone, as most have; None: it is looked at closely."""
    if not isinstance(message, dict) or message.keys() != _OF_PLAIN:
        return None
    given, content = message["role"], message["content"]
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None or not content or not isinstance(content, str):
        return None
    return {"role": role, "content": content}, role == "assistant"


def _message(at: str, message: Any) -> tuple[dict[str, Any], bool]:
    """A message, and whether it is learnt. Raises ExampleError."""
    if not isinstance(message, dict):
        raise ExampleError(f"{at} is no object")
    given = message.get("role")
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise ExampleError(f"{at}.role is {shown([given])}. hint: {', '.join(_ROLES)}")
    if unknown := sorted(message.keys() - _OF_MESSAGE):
        hint = ". hint: use tool_calls" if "function_call" in unknown else ""
        raise ExampleError(f"{at} has {shown(unknown)}, which is not known{hint}")
    turn: dict[str, Any] = {"role": role, "content": _content(at, message)}
    if (calls := _calls(at, message.get("tool_calls"))) and role != "assistant":
        raise ExampleError(f"{at}.tool_calls: only an assistant calls tools")
    if calls:
        turn["tool_calls"] = calls
    for key in ("tool_call_id", "name", "reasoning_content"):
        if (text := message.get(key)) is not None:
            turn[key] = _string(f"{at}.{key}", text)
    if not turn["content"] and (role != "assistant" or not calls):
        what = "an answer" if role == "assistant" else "a message"
        raise ExampleError(f"{at} is empty. hint: {what} has words" + (" or tool_calls" if role == "assistant" else ""))
    return turn, role == "assistant" and _weight(at, role, message.get("weight")) == 1


def _weight(at: str, role: str, weight: Any) -> int:
    if weight is None:
        return 1
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ExampleError(f"{at}.weight is {shown([weight])}. hint: 0 or 1")
    return int(weight)


def _content(at: str, message: Mapping[str, Any]) -> str:
    content, refusal = message.get("content"), message.get("refusal")
    if content and refusal:
        raise ExampleError(f"{at} has a content and a refusal, and learns one of them. hint: leave the other out")
    if not content and refusal is not None:
        return _string(f"{at}.refusal", refusal)
    if content is None:
        return ""
    if not isinstance(content, list):
        return _string(f"{at}.content", content)
    texts = []
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ExampleError(f"{at}.content[{j}] is of type {shown([kind])}, and texts alone are learnt")
        texts.append(_string(f"{at}.content[{j}].text", part.get("text")))
    return "\n".join(texts)


def _string(at: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ExampleError(f"{at} is no text")
    return value


def _calls(at: str, calls: Any) -> list[dict[str, Any]]:
    if calls is None:
        return []
    if not isinstance(calls, list):
        raise ExampleError(f"{at}.tool_calls is no list")
    return [_call(f"{at}.tool_calls[{j}]", call) for j, call in enumerate(calls)]


def _call(at: str, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ExampleError(f'{at} names no function. hint: {{"id": ..., "type": "function", "function": {{"name": ...')
    written = function.get("arguments")
    arguments = {} if written is None else written
    if isinstance(written, str):
        try:
            arguments = jiter.from_json(written.encode(), allow_inf_nan=False) if written.strip() else {}
        except ValueError:
            raise ExampleError(f"{at}.function.arguments is no JSON, and would be learnt as it is") from None
    if not isinstance(arguments, dict):
        raise ExampleError(f"{at}.function.arguments is no JSON object")
    identity = _string(f"{at}.id", call.get("id", ""))
    return {"id": identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _check_order(at: str, turn: Mapping[str, Any], last: str | None, asked: Collection[str]) -> None:
    """Only what a server would render as it stands. Raises ExampleError.

    `last` is the role of the message before, `asked` the ids of all calls before.
    """
    role = turn["role"]
    if role == "system" and last is not None:
        raise ExampleError(f"{at} is a system message behind others. hint: one, and the first")
    if role == last and role in ("user", "assistant"):
        raise ExampleError(f"{at} is a second message of the {role} in a row. hint: join them")
    if role == "tool" and turn.get("tool_call_id") not in asked:
        raise ExampleError(f"{at}.tool_call_id is that of no call before it")


def _tools(tools: Any) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise ExampleError("tools is no list")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ExampleError(f'tools[{i}] is no function. hint: {{"type": "function", "function": {{"name": ...')
    return tools
