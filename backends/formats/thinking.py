"""Reasoning blocks: what opens and closes them in each family, and how a rendered prompt leaves them."""

from __future__ import annotations

import enum
import re
from typing import Final

MARKS: Final = (
    ("<|channel|>analysis<|message|>", "<|end|>", "<|channel|>analysis"),
    ("<|channel>thought\n", "<channel|>", "<channel|>"),
    ("[THINK]", "[/THINK]", "[THINK]"),
    ("<seed:think>", "</seed:think>", "<seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_THINKING|>"),
    ("<think>", "</think>", "<think>"),
)
"""What opens a block, what closes it, and what a template of such a model holds."""
OPTIONS: Final = ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget")
"""Variables that chat templates read to switch or bound reasoning."""

_READ: Final = r"(?:\b(?:if|not|and|or|=|\+)\s*\(?{name}\b)|(?:\b{name}\s*(?:is\b|==|\||\+))"
"""Where a template reads a variable, and does not only hold its name in some text."""


class Thinking(enum.Enum):
    """Where a text begins: outside of any block (`NEVER` to enter one, or `MAYBE`), or `OPEN`: inside one."""

    NEVER = "never"
    MAYBE = "maybe"
    OPEN = "open"


def marks_of(template: str) -> tuple[str, str] | None:
    """How a model with this template marks its reasoning; None where it knows none."""
    return next(((opening, closing) for opening, closing, sign in MARKS if sign in template), None)


def options_of(template: str) -> list[str]:
    """The switches for reasoning that a template reads."""
    return [name for name in OPTIONS if re.search(_READ.format(name=name), template)]


def thinking_of(rendered: str, marks: tuple[str, str] | None) -> Thinking:
    """How the prompt ends: a template that closes a block, or writes an empty one, asks for none."""
    if marks is None:
        return Thinking.NEVER
    end = rendered.rstrip()
    if end.endswith(marks[0].rstrip()):
        return Thinking.OPEN
    return Thinking.NEVER if end.endswith(marks[1].rstrip()) else Thinking.MAYBE
