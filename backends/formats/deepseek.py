"""DeepSeek: V3.1 writes a name and its arguments between marks, V3 and R1 put the arguments into a fenced block."""

from __future__ import annotations

import json
from collections.abc import Sequence

from backends.formats.base import Conversation, Format, Json, Rules, arguments_of, quoted
from backends.formats.openings import BRACE, NAME, SPACE, Openings, Pattern, maybe, regex
from backends.formats.reading import Notation
from backends.messages import Function

ALL, ALL_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, SEP, ONE_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_FENCE_END = "\n```"
_PLAIN = (ONE, NAME, SEP, SPACE, BRACE)
_FENCED = (ONE, maybe("function", SEP), NAME, "\n```", maybe("json"), "\n", SPACE, BRACE)


def _rules(functions: Sequence[Function], parallel: bool, *, opening: Pattern, after: str) -> Rules:
    bodies = [f"args{i} {after} {quoted(ONE_END)}" for i in range(len(functions))]
    # space and mark are one lexeme, because both may begin another call, too, and a lexer does not go back
    lines = [*arguments_of(functions), f"END: /{regex((SPACE, ALL_END))}/"]
    if not parallel:
        return Rules(bodies=bodies, after="END", lines=lines)
    return Rules(bodies=bodies, after="another* END", another=(SPACE, *opening), lines=lines)


def _plain(functions: Sequence[Function], parallel: bool) -> Rules:
    return _rules(functions, parallel, opening=_PLAIN, after="")


def _fenced(functions: Sequence[Function], parallel: bool) -> Rules:
    return _rules(functions, parallel, opening=_FENCED, after=quoted(_FENCE_END))


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
    openings=Openings(marked=(maybe(ALL, SPACE), *_FENCED)),
    rules=_fenced,
    notation=Notation(gaps=("```", ONE_END, ALL_END), enclosed=False),
    marks=_MARKS,
    adapt=arguments_as_text,
)

FORMAT = Format(
    name="deepseek",
    fits=lambda template: ALL in template,
    openings=Openings(marked=(maybe(ALL, SPACE), *_PLAIN)),
    rules=_plain,
    notation=Notation(gaps=(ONE_END, ALL_END), enclosed=False),
    marks=_MARKS,
    adapt=arguments_as_text,
)
