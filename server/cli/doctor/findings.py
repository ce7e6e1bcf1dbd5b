"""What the doctor finds, as data: a level, a sentence, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: Final[tuple[Level, ...]] = ("ok", "note", "warning", "problem")
"""The least first."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    level: Level
    text: str
    remedy: str | None = None


def told(subject: str, level: Level, sentence: str) -> Finding:
    """A sentence of ours, whose `hint:` is the remedy."""
    text, _, remedy = " ".join(sentence.split()).partition(" hint: ")
    return Finding(subject, level, text, remedy or None)


def worst(findings: Iterable[Finding]) -> Level:
    """The level of the gravest."""
    levels = [LEVELS.index(one.level) for one in findings]
    return LEVELS[max(levels, default=0)]
