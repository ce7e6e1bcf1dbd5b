"""Hermes, Qwen 2.5 and 3 and many others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Hermes 2 Pro was trained with the arguments first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from backends.formats.base import Format, Rules, object_rules, quoted, turned
from backends.formats.openings import OBJECT, SPACE, TURNED, Openings
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def rules(functions: Sequence[Function], _parallel: bool) -> Rules:
    """One object between tags; another pair of tags for each further call."""
    made = object_rules(functions, after=f"GAP {quoted(CLOSE)}")
    body, lines = turned(functions)
    return replace(made, turned=body, lines=[*made.lines, *lines])


FORMAT = Format(
    name="hermes",
    fits=lambda template: OPEN in template and "tools" in template,
    openings=Openings(marked=(OPEN, SPACE, *OBJECT), turned=(OPEN, SPACE, *TURNED)),
    rules=rules,
    notation=Notation(gaps=(CLOSE,)),
    marks=(OPEN, CLOSE),
)
