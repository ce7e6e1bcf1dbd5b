"""Hermes, Qwen 2.5 and 3 and many others: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Sequence

from backends.formats.base import Format, Rules, inline, named_objects, quoted
from backends.formats.reading import Notation
from backends.messages import Function

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def rules(functions: Sequence[Function], parallel: bool) -> Rules:
    """One object between tags; another pair of tags for each further call."""
    more = f"(GAP {quoted(OPEN)} call)*" if parallel else ""
    call = f"call: GAP object GAP {quoted(CLOSE)}\nobject: {inline(named_objects(functions))}"
    return Rules(trigger=OPEN, calls=f"calls: call {more} GAP\n{call}\n")


FORMAT = Format(
    name="hermes",
    fits=lambda template: OPEN in template and "tools" in template,
    rules=rules,
    notation=Notation(begins=(OPEN,), gaps=(CLOSE,)),
    marks=(OPEN, CLOSE),
)
