"""Shared by formats: where it is certain that a call begins; each format states its own `Openings`.

A mark alone is a word like any other. What makes a call of it is the name of an offered function and the beginning of
its arguments. The grammar of an answer takes over at the same letter at which its reader announces the call.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Final, NamedTuple

from backends.formats.pieces import first_of, held_back

_RUNS: Final = {"SPACE": r"(\n{0,2}(\t{1,2}|[ ]{0,8}))", "WORD": "[A-Za-z0-9_-]{1,64}"}
"""In either dialect of regular expressions. A model that loves white space may write no more of it."""
_RUN = {name: re.compile(run) for name, run in _RUNS.items()}
_ANY_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,256}")


class Part(Enum):
    """What an opening holds besides fixed words."""

    SPACE = "a little white space"
    NAME = "the name of an offered function"
    BRACE = "the brace behind which arguments begin, which is theirs"
    WORD = "letters and digits"


SPACE, NAME, BRACE, WORD = Part.SPACE, Part.NAME, Part.BRACE, Part.WORD


@dataclass(frozen=True)
class Either:
    """One of several patterns."""

    choices: tuple[Pattern, ...]


Pattern = tuple["str | Part | Either", ...]


def either(*choices: Pattern | str) -> Either:
    """One of them."""
    return Either(tuple((choice,) if isinstance(choice, str) else choice for choice in choices))


def maybe(*parts: str | Part | Either) -> Either:
    """These, or nothing."""
    return Either((parts, ()))


class Match(NamedTuple):
    """Where a pattern ends in a text, or that the text ends before."""

    end: int
    whole: bool
    name: str | None = None
    """None also where the text ends before it is certain."""
    name_end: int = 0


def match(pattern: Pattern, text: str, at: int, names: Collection[str] | None) -> Match | None:
    """The pattern at this place; None where something else stands there. `names`: None takes any."""
    found = _match(pattern, text, Match(at, whole=True), names)
    return found._replace(name=None) if found is not None and found.name_end == len(text) else found


def _match(pattern: Pattern, text: str, so_far: Match, names: Collection[str] | None) -> Match | None:
    if not pattern:
        return so_far
    part, rest, at = pattern[0], pattern[1:], so_far.end
    if part is SPACE or part is WORD:
        run = _RUN[part.name].match(text, at)
        if run is None:
            return so_far._replace(whole=False) if at == len(text) else None
        return _match(rest, text, so_far._replace(end=run.end()), names)
    if part is BRACE:
        return so_far._replace(whole=at < len(text)) if text.startswith("{", at) or at == len(text) else None
    partial: Match | None = None
    for words, then, name in _choices(part, rest, text, at, names):
        if text.startswith(words, at):
            end = at + len(words)
            behind = so_far._replace(end=end)
            found = _match(then, text, behind if name is None else Match(end, so_far.whole, name, end), names)
        else:
            is_cut = len(text) - at < len(words) and words.startswith(text[at:])
            found = so_far._replace(end=len(text), whole=False) if is_cut else None
        if found is not None and found.whole:
            return found
        partial = found if partial is None or (found is not None and found.name is not None) else partial
    return partial


def _choices(
    part: str | Part | Either, rest: Pattern, text: str, at: int, names: Collection[str] | None
) -> Sequence[tuple[str, Pattern, str | None]]:
    """Fixed words that may come next, what comes behind each, and the name that it is."""
    if isinstance(part, str):
        return [(part, rest, None)]
    if isinstance(part, Either):
        return [("", (*choice, *rest), None) for choice in part.choices]
    if names is None:
        run = _ANY_NAME.match(text, at)
        names = [run.group()] if run is not None else ["\0"] if at == len(text) else []
    return [(name, rest, name) for name in names]


def regex(pattern: Pattern, name: str = "", *, brace: bool = False) -> str:
    """The same for llguidance, with this name; with `brace` it holds the one of the arguments."""
    written = ""
    for part in pattern:
        if part is SPACE or part is WORD:
            written += _RUNS[part.name]
        elif part is NAME:
            written += _escaped(name)
        elif part is BRACE:
            written += r"\{" if brace else ""
        elif isinstance(part, Either):
            choices = [regex(choice, name, brace=brace) for choice in part.choices]
            written += f"({'|'.join(filter(None, choices))}){'' if all(choices) else '?'}"
        else:
            written += _escaped(str(part))
    return written


def _escaped(text: str) -> str:
    return "".join("\\n" if char == "\n" else f"\\{char}" if char in r"\.^$|?*+()[]{}/" else char for char in text)


def parted(pattern: Pattern) -> list[tuple[Pattern, Pattern]]:
    """A pattern in two, before the name of the function and from there on, once for each way to write it.

    The first part ends with a fixed word, so that it ends at one place only.
    """
    for i, part in enumerate(pattern):
        if part is NAME:
            cut = next(at for at in range(i, 0, -1) if isinstance(pattern[at - 1], str))
            return [(pattern[:cut], pattern[cut:])]
        if isinstance(part, Either) and any(_names(choice) for choice in part.choices):
            return [way for choice in part.choices for way in parted((*pattern[:i], *choice, *pattern[i + 1 :]))]
    return []


def _names(pattern: Pattern) -> bool:
    return any(
        part is NAME or (isinstance(part, Either) and any(_names(choice) for choice in part.choices))
        for part in pattern
    )


def firsts(pattern: Pattern) -> tuple[str, ...]:
    """The words with which a pattern may begin."""
    part = pattern[0]
    if isinstance(part, Either):
        return tuple(dict.fromkeys(word for choice in part.choices for word in firsts((*choice, *pattern[1:]))))
    assert isinstance(part, str)
    return (part,)


class Place(NamedTuple):
    """Where a call begins in a text, or may begin."""

    at: int
    """Up to here the text holds none."""
    match: Match | None
    """None: no more than a part of a mark stands there."""


@dataclass(frozen=True)
class Openings:
    """How calls of one format begin."""

    marked: Pattern
    """Anywhere in a text."""
    bare: Pattern | None = None
    """Only at its very beginning."""
    more: Pattern | None = None
    """Only right behind a call that nothing has closed."""
    turned: Pattern | None = None
    """Anywhere: the arguments come first, and the name behind them."""
    names_alone: bool = True
    """Where calls are objects, one that asks for no arguments may be a name alone."""
    with_brace: bool = False
    """In a grammar the opening holds the brace of its arguments, too: nothing else ends the name."""

    def within(self) -> Openings:
        """The same inside of a block of reasoning, where a call needs a mark."""
        return replace(self, bare=None)

    def find(self, text: str, names: Collection[str] | None, unasking: Collection[str] | None) -> Place:
        """The first place where a call stands, or may stand once the text has gone on.

        `unasking` are those functions of the names that can be called without arguments.
        """
        at = first_of(text, self._words)[0]
        while at >= 0:
            for pattern in self.anywhere:
                if (found := self.match(pattern, text, at, names, unasking)) is not None:
                    return Place(at, found)
            at = first_of(text, self._words, at + 1)[0]
        return Place(len(text) - held_back(text, *self._words), None)

    def match(
        self, pattern: Pattern, text: str, at: int, names: Collection[str] | None, unasking: Collection[str] | None
    ) -> Match | None:
        """One of these at this place, with arguments or, where none are asked for, without."""
        found, short = match(pattern, text, at, names), self.without_arguments(pattern)
        return match(short, text, at, unasking) if found is None and short is not None else found

    def without_arguments(self, pattern: Pattern) -> Pattern | None:
        """The whole object of a call that has a name alone; None where there are none such."""
        at = next((i for i, part in enumerate(pattern) if part is NAME), -1)
        is_object = self.names_alone and at >= 0 and pattern[at + 1 : at + 2] == ('"',)
        return (*pattern[: at + 2], SPACE, "}") if is_object else None

    @cached_property
    def _words(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for pattern in self.anywhere for word in firsts(pattern)))

    @cached_property
    def anywhere(self) -> tuple[Pattern, ...]:
        """Those that need no place of their own."""
        return (self.marked,) if self.turned is None else (self.marked, self.turned)

    def regex(self, pattern: Pattern, name: str = "") -> str:
        """One of these for llguidance."""
        return regex(pattern, name, brace=self.with_brace)


OBJECT: Final[Pattern] = (
    *("{", SPACE, '"name"', SPACE, ":", SPACE, '"', NAME, '"', SPACE, ",", SPACE),
    *(either('"arguments"', '"parameters"'), SPACE, ":", SPACE, BRACE),
)
"""`{"name": ..., "arguments":`."""
TURNED: Final[Pattern] = ("{", SPACE, either('"arguments"', '"parameters"'), SPACE, ":", SPACE, BRACE)
_ASKING = frozenset(
    {"minProperties", "allOf", "anyOf", "oneOf", "$ref", "not", "if", "const", "enum", "dependentRequired"}
)


def asks_nothing(parameters: object) -> bool:
    """An empty object satisfies this schema for certain."""
    return not parameters or (
        isinstance(parameters, dict) and not parameters.get("required") and not _ASKING & parameters.keys()
    )
