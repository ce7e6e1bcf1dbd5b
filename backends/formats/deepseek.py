"""DeepSeek: V3.1 writes a name and its arguments between marks, V3 and R1 put the arguments into a fenced block."""

from __future__ import annotations

import json
from collections.abc import Sequence

from backends.formats.base import Conversation, Format, Json, Rules, inline, parameters, quoted
from backends.formats.reading import Notation, header
from backends.messages import Function

ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, SEP, ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE, _FENCE_END = "\n```json\n", "\n```"


def _rules(functions: Sequence[Function], parallel: bool, *, before: str, between: str, after: str) -> Rules:
    calls = [
        f"call{i}: {quoted(before + function.name + between)} {inline(parameters(function))} {quoted(after)}"
        for i, function in enumerate(functions)
    ]
    more = "(GAP call)*" if parallel else ""
    either = " | ".join(f"call{i}" for i in range(len(functions)))
    lark = [f"calls: GAP call {more} GAP {quoted(ALL_END)}", f"call: {either}", *calls, ""]
    return Rules(trigger=ALL, calls="\n".join(lark))


def _plain(functions: Sequence[Function], parallel: bool) -> Rules:
    return _rules(functions, parallel, before=ONE, between=SEP, after=ONE_END)


def _fenced(functions: Sequence[Function], parallel: bool) -> Rules:
    before, after = f"{ONE}function{SEP}", _FENCE_END + ONE_END
    return _rules(functions, parallel, before=before, between=_FENCE, after=after)


def arguments_as_text(messages: list[Json], tools: list[Json]) -> Conversation:
    """The templates join arguments to strings, so they have to be text; content beside calls is None, not empty."""
    adapted = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = {**message, "content": message.get("content") or None, "tool_calls": [_as_text(c) for c in calls]}
        adapted.append(message)
    return adapted, tools


def _as_text(call: Json) -> Json:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


_MARKS = (ALL, ALL_END, ONE, SEP, ONE_END)

FENCED = Format(
    name="deepseek-r1",
    fits=lambda template: ALL in template and "```json" in template,
    rules=_fenced,
    notation=Notation(
        begins=(ALL, ONE),
        opening=header(rf"(?:function{SEP})?(?P<name>[^\n<{{]{{1,256}}?)\n```(?:json)?"),
        gaps=("```", ONE_END, ALL_END),
        enclosed=False,
    ),
    marks=_MARKS,
    adapt=arguments_as_text,
)

FORMAT = Format(
    name="deepseek",
    fits=lambda template: ALL in template,
    rules=_plain,
    notation=Notation(
        begins=(ALL, ONE),
        opening=header(rf"(?P<name>[^\n<{{]{{1,256}}?){SEP}"),
        gaps=(ONE_END, ALL_END),
        enclosed=False,
    ),
    marks=_MARKS,
    adapt=arguments_as_text,
)
