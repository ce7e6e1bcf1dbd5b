"""Models whose template knows no tools: a system text describes them, and calls are written as Hermes does."""

from __future__ import annotations

import json

from backends.formats import hermes
from backends.formats.base import Conversation, Format, Json

_INTRODUCTION = (
    "You may call functions to help with the user's request. These are the functions, as JSON:\n<tools>\n{tools}\n"
    "</tools>\nTo call one, answer with its name and its arguments as a JSON object within these tags, and nothing "
    'else:\n<tool_call>\n{{"name": <name>, "arguments": <arguments>}}\n</tool_call>'
)


def described(messages: list[Json], tools: list[Json]) -> Conversation:
    """Tools, calls and their results as plain text, and the turns of `system`, `user` and `assistant` alone."""
    if not tools and not any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
        return messages, []
    turns = [_plain(message) for message in messages]
    if tools:
        listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
        text = _INTRODUCTION.format(tools=listed)
        if turns and turns[0]["role"] == "system":
            turns[0] = {**turns[0], "content": f"{turns[0]['content']}\n\n{text}".strip()}
        else:
            turns.insert(0, {"role": "system", "content": text})
    return _joined(turns), []


def _plain(message: Json) -> Json:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if calls := message.get("tool_calls"):
        written = "\n".join(_call(call["function"]) for call in calls)
        text = f"{message.get('content') or ''}\n{written}".strip()
        return {"role": "assistant", "content": text}
    return message


def _call(function: Json) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{hermes.OPEN}\n{{"name": {json.dumps(function["name"])}, "arguments": {text}}}\n{hermes.CLOSE}'


def _joined(turns: list[Json]) -> list[Json]:
    """Neighbours of one role as one, because strict templates want them to alternate."""
    joined: list[Json] = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"] == "user":
            joined[-1] = {**joined[-1], "content": f"{joined[-1]['content']}\n{turn['content']}"}
        else:
            joined.append(turn)
    return joined


FORMAT = Format(
    name="generic",
    fits=lambda template: True,
    openings=hermes.FORMAT.openings,
    rules=hermes.rules,
    notation=hermes.FORMAT.notation,
    marks=hermes.FORMAT.marks,
    adapt=described,
)
