"""What is asked of a JSON schema as a whole: how deep it is, where references lead, what its alternatives multiply to.

Pure: no error and no path.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_ALTERNATIVES = 256
"""Combinations of alternatives that have to hold at once."""
MAX_COUNTED = 20_000
"""Where counting combinations stops."""
MAX_SAFE_INTEGER = 2**53 - 1
LARGEST_BOUND = 9_223_372_036_854_770_000
"""What is compared is a double of 15 digits and, of an integer, 64 bits."""
GROUPS = ("properties", "patternProperties", "$defs", "definitions")
"""Keywords that hold schemas by name."""
SINGLES = ("items", "additionalProperties")
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def resolved(root: Any, reference: str) -> tuple[bool, Any]:
    """Whether a local reference points to something, and to what."""
    target = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, dict) and name in target:
            target = target[name]
        elif isinstance(target, list) and name.isdigit() and int(name) < len(target):
            target = target[int(name)]
        else:
            return False, None
    return reference == "#" or reference.startswith("#/"), target


def over_keywords(reference: str) -> bool:
    """Whether a local reference passes keywords that hold schemas alone, so that a walk over these meets its target."""
    steps = iter(reference.split("/")[1:])
    return all(next(steps, None) is not None if step in GROUPS or step in LISTS else step in SINGLES for step in steps)


class Alternatives:
    """How many combinations a schema's alternatives make where several of them have to hold at once."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, int] = {}

    @property
    def too_many(self) -> bool:
        """More of them than a grammar can hold."""
        return any(
            self._of(schema) > MAX_ALTERNATIVES and ("allOf" in schema or "$ref" in schema)
            for schema in _subschemas(self._root)
        )

    def _of(self, schema: Any) -> int:
        """Of one schema; without recursion, because references lead as deep as a client likes."""
        waiting, entered = [schema], set[int]()
        while waiting:
            at = waiting.pop()
            if not isinstance(at, dict) or id(at) in self._known:
                continue
            if id(at) in entered:
                self._known[id(at)] = self._product(at)
            else:
                entered.add(id(at))
                waiting += [at, *(part for part in self._parts(at) if id(part) not in entered)]
        return self._known.get(id(schema), 1)

    def _parts(self, schema: dict[str, Any]) -> list[Any]:
        """What has to be known before its product is."""
        lists = [value for key in ("anyOf", "oneOf", "allOf") if isinstance(value := schema.get(key), list)]
        return [*itertools.chain(*lists), *self._target(schema)]

    def _product(self, schema: dict[str, Any]) -> int:
        def known(part: Any) -> int:
            return self._known.get(id(part), 1)  # a reference back to where it comes from adds nothing

        total = 1
        for key in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(key), list):
                total = min(total * sum(map(known, branches)), MAX_COUNTED)
        together = schema.get("allOf")
        for part in [*(together if isinstance(together, list) else []), *self._target(schema)]:
            total = min(total * known(part), MAX_COUNTED)
        return total

    def _target(self, schema: dict[str, Any]) -> list[Any]:
        """What it refers to, if it does."""
        reference = schema.get("$ref")
        return [resolved(self._root, reference)[1]] if isinstance(reference, str) else []


def _subschemas(root: Any) -> Iterator[dict[str, Any]]:
    """Every object in it."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def depth(value: Any) -> int:
    """Levels of objects and lists."""
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        item, level = waiting.pop()
        deepest = max(deepest, level)
        waiting += [(child, level + 1) for child in _inside(item) if isinstance(child, dict | list)]
    return deepest


def inexact(value: Any) -> int | float | None:
    """A number in it that JSON cannot say or that a double rounds; None where every reader gets the same."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return item
        if isinstance(item, int) and abs(item) > MAX_SAFE_INTEGER:
            return item
        waiting += _inside(item)
    return None


def enforceable(bound: float, *, from_above: bool, strict: bool) -> int | float | None:
    """A bound of numbers that no number beyond it passes; None where it leaves nothing to write.

    llguidance reads bounds as doubles and writes them in as many digits as tell doubles apart, so a large one is taken
    as the next one inside that has 15 digits. `strict`: a number that equals it is outside.
    """
    if not math.isfinite(bound):
        return None
    if abs(bound) <= MAX_SAFE_INTEGER:
        return bound
    if not from_above:
        least = enforceable(-bound, from_above=True, strict=strict)
        return None if least is None else -least
    if bound > LARGEST_BOUND:
        return LARGEST_BOUND
    return None if bound < -LARGEST_BOUND else _rounded_down(int(bound), strict=strict)


def _rounded_down(bound: int, *, strict: bool) -> int:
    unit = int(10 ** (len(str(abs(bound))) - 15))
    rounded = bound // unit * unit
    while max(rounded, int(float(rounded))) > bound - strict:
        rounded -= unit
    return rounded


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
