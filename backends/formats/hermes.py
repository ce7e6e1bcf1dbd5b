"""Hermes, Qwen 2.5 and 3 and many others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Hermes 2 Pro was trained with the arguments first.
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.formats.base import Format, Rules, object_rules, quoted
from backends.formats.openings import OBJECT, SPACE, TURNED, Openings
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def rules(functions: Sequence[Function], _parallel: bool) -> Rules:
    """One object between tags; another pair of tags for each further call."""
    return object_rules(functions, f"GAP {quoted(CLOSE)}", turns=True)


FORMAT = Format(
    name="hermes",
    fits=lambda template: OPEN in template and "tools" in template,
    openings=Openings(marked=(OPEN, SPACE, *OBJECT), turned=(OPEN, SPACE, *TURNED)),
    rules=rules,
    notation=Notation(gaps=(CLOSE,)),
    marks=(OPEN, CLOSE),
)
