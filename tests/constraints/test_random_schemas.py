"""Schemas that no one would write: each is refused with a path, or every answer it lets pass validates."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from backends.constraints.grammars import CompiledGrammar, Compiler
from backends.engine import JobError
from backends.formats.known import named
from backends.messages import JsonSchema
from server.errors import ApiError
from server.schemas.json_schema import checked
from tests.formats.walks import vocabulary, wander

Dice = random.Random
NUMBERS = [0, 1, -3, 0.5, 100, 2**53 - 1, 2**53 + 1, 2**63, -(2**64), 10**25, 1e21, 1e-7]
TEXTS = ["", "a", "b c", "é", '"', "\\", "\n", "😀", "x" * 10]
PATTERNS = ["^[a-c]+$", "a|b", r"^\d{2}", "x$", "^(ab)*$", "^.$", "[^a]", "^$"]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_4 = "http://json-schema.org/draft-04/schema#"


def some(dice: Dice, **keywords: Any) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if dice.random() < 0.45}


def value(dice: Dice, depth: int = 2) -> Any:
    kind = dice.random()
    if depth and kind < 0.2:
        return [value(dice, depth - 1) for _ in range(dice.randint(0, 3))]
    if depth and kind < 0.4:
        return {dice.choice("abc"): value(dice, depth - 1) for _ in range(dice.randint(0, 2))}
    return dice.choice([None, True, False, dice.choice(NUMBERS), dice.choice(TEXTS)])


def number(dice: Dice) -> dict[str, Any]:
    bounds = some(dice, minimum=dice.randint(-20, 5), maximum=dice.randint(5, 30), multipleOf=dice.choice([1, 3, 7]))
    open_ends = some(dice, exclusiveMinimum=dice.randint(-20, 5), exclusiveMaximum=dice.randint(5, 40))
    return {"type": dice.choice(["integer", "number"]), **bounds, **open_ends}


def text(dice: Dice) -> dict[str, Any]:
    length = some(dice, minLength=dice.randint(0, 3), maxLength=dice.randint(3, 8))
    return {
        "type": "string",
        **length,
        **some(dice, pattern=dice.choice(PATTERNS), format=dice.choice(["date", "ipv4"])),
    }


def array(dice: Dice, depth: int) -> dict[str, Any]:
    places = [schema(dice, depth - 1) for _ in range(dice.randint(1, 2))]
    length = some(dice, minItems=dice.randint(0, 2), maxItems=dice.randint(2, 4))
    more = schema(dice, depth - 1)
    return {"type": "array", **some(dice, items=more, prefixItems=places), **length}


def thing(dice: Dice, depth: int) -> dict[str, Any]:
    properties = {name: schema(dice, depth - 1) for name in dice.sample(["a", "b", "d e", ""], dice.randint(0, 3))}
    others = some(
        dice,
        additionalProperties=dice.choice([False, True, schema(dice, depth - 1)]),
        patternProperties={dice.choice(["^a", "^x", "e$"]): schema(dice, depth - 1)},
        required=dice.sample([*sorted(properties), "z"], dice.randint(0, len(properties))),
    )
    counts = some(dice, minProperties=dice.randint(0, 3), maxProperties=dice.randint(3, 4))
    return {"type": "object", "properties": properties, **others, **counts}


def schema(dice: Dice, depth: int = 3) -> Any:
    makers = [number, text, lambda dice: {"enum": [value(dice) for _ in range(dice.randint(1, 4))]}]
    if depth:
        makers += [lambda dice: array(dice, depth), lambda dice: thing(dice, depth), lambda dice: thing(dice, depth)]
        makers += [lambda dice: {dice.choice(["anyOf", "allOf"]): [schema(dice, depth - 1) for _ in range(2)]}]
    makers += [lambda dice: {"const": value(dice)}, lambda dice: dice.choice([{}, True, {"type": ["string", "null"]}])]
    return dice.choice(makers)(dice)


def older(dice: Dice) -> dict[str, Any]:
    """Bounds as draft 4 has them, or a tuple as draft 7 has it."""
    if dice.random() < 0.5:
        more = dice.choice([False, True, number(dice), {"type": "null"}])
        places = dice.choice([[number(dice)], [{"type": "boolean"}, {"const": 1}], {"type": "boolean"}])
        return {"$schema": DRAFT_7, "type": "array", "items": places, **some(dice, additionalItems=more, maxItems=3)}
    least, most = sorted(dice.sample(range(-9, 20), 2))
    open_ends = {"exclusiveMinimum": dice.random() < 0.5, "exclusiveMaximum": dice.random() < 0.5}
    return {"$schema": DRAFT_4, "type": "integer", "minimum": least, "maximum": most + 2, **open_ends}


def compiled(compiler: Compiler, asked: dict[str, Any]) -> CompiledGrammar | str:
    """The grammar, or the path of what is refused."""
    try:
        return compiler.compile(JsonSchema(checked(asked, "s").text, param="s"))
    except (ApiError, JobError) as problem:
        return problem.param or ""


@pytest.mark.parametrize("seed", range(6))
def test_no_answer_that_passes_fails_its_schema(seed):
    dice, compiler, whole = Dice(seed), Compiler(vocabulary, named("generic")), 0
    for _ in range(40):
        asked = older(dice) if dice.random() < 0.2 else {"properties": {}, **thing(dice, 3)}
        grammar = compiled(compiler, asked)
        if isinstance(grammar, str):
            assert grammar.startswith("s")
            continue
        for _ in range(3):
            if (answer := wander(grammar.start(), dice)) is not None:
                whole += 1
                jsonschema.validate(json.loads(answer), asked)
    assert whole > 15
