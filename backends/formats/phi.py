"""Phi-4-mini: `<|tool_call|>[{"name": ..., "arguments": {...}}]<|/tool_call|>`, or one object in place of the array."""

from __future__ import annotations

import json
from collections.abc import Sequence

from backends.formats.base import Conversation, Format, Json, Rules, object_rules, quoted
from backends.formats.openings import OBJECT, SPACE, Openings, maybe
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, CLOSE = "<|tool_call|>", "<|/tool_call|>"
_MORE = (SPACE, ",", SPACE, *OBJECT)


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """An array of objects between marks."""
    close = f'(GAP "]")? GAP {quoted(CLOSE)}'
    return object_rules(functions, f"another* {close}", _MORE) if parallel else object_rules(functions, close)


def tools_in_system(messages: list[Json], tools: list[Json]) -> Conversation:
    """The published template reads tools from the system message, the one of llama.cpp's users from `tools`."""
    if not tools:
        return messages, tools
    listed = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    first = messages[0] if messages and messages[0]["role"] == "system" else {"role": "system", "content": ""}
    rest = messages[1:] if first in messages[:1] else messages
    return [{**first, "tools": listed}, *rest], tools


FORMAT = Format(
    name="phi",
    fits=lambda template: "<|tool|>" in template,
    openings=Openings(marked=(OPEN, SPACE, maybe("["), SPACE, *OBJECT), more=_MORE),
    rules=rules,
    notation=Notation(gaps=("]", CLOSE)),
    marks=(OPEN, CLOSE),
    adapt=tools_in_system,
)
