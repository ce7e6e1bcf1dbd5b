"""Gemma 4 and FunctionGemma: `call:name{key:<|"|>text<|"|>,n:5}` between marks, a notation of its own for arguments.

Types, enumerations and required properties of a schema are enforced in it; patterns and bounds are not.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backends.formats.base import INTEGER, Format, Json, Rules, parameters, quoted, takes_others
from backends.formats.openings import BRACE, NAME, Openings
from backends.formats.pieces import held_back
from backends.formats.reading import Notation
from backends.messages import Function

_NUMBER = rf"{INTEGER}(\.[0-9]{{1,17}})?"
_MAX_DEPTH = 12


@dataclass(frozen=True)
class Marks:
    """One generation's words for the same things."""

    begin: str
    end: str
    quote: str


class _Writer:
    """Lark rules for values of a schema in this notation."""

    def __init__(self, root: Json, prefix: str, quote: str) -> None:
        self._root, self._prefix, self._quote = root, prefix, quote
        self.lines: list[str] = []
        self._named: dict[str, str] = {}

    def rule(self, body: str) -> str:
        name = f"{self._prefix}x{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def value(self, schema: Any, depth: int = 0) -> str:
        """The name of a rule, or a body, for one value."""
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return "any"
        if isinstance(reference := schema.get("$ref"), str):
            return self._referenced(reference, depth)
        if "const" in schema or "enum" in schema:
            return self._either([quoted(self._written(v)) for v in schema.get("enum", [schema.get("const")])])
        for key in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(key), list) and branches:
                return self._either([self.value(branch, depth + 1) for branch in branches])
        kinds = schema.get("type")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        return self._either([self._of_type(kind, schema, depth) for kind in kinds])

    def _referenced(self, reference: str, depth: int) -> str:
        if reference not in self._named:
            target: Any = self._root
            for step in filter(None, reference.removeprefix("#").split("/")):
                target = target.get(step) if isinstance(target, dict) else None
            self._named[reference] = name = f"{self._prefix}r{len(self._named)}"
            self.lines.append(f"{name}: {self.value(target, depth + 1)}")
        return self._named[reference]

    def _either(self, bodies: list[str]) -> str:
        return bodies[0] if len(bodies) == 1 else "(" + " | ".join(bodies) + ")"

    def _of_type(self, kind: Any, schema: Json, depth: int) -> str:
        if kind == "object" and isinstance(schema.get("properties"), dict) and schema["properties"]:
            return self.object(schema, depth)
        if kind == "array":
            item = self.value(schema.get("items"), depth + 1)
            some = f'({item} ("," {item})*)'
            return self.rule(f'"[" {some}{"" if schema.get("minItems") else "?"} "]"')
        simple = {
            "string": "string",
            "integer": f"/{INTEGER}/",
            "number": f"/{_NUMBER}/",
            "boolean": '("true" | "false")',
            "null": '"null"',
            "object": "map",
        }
        return simple.get(kind, "any")

    def object(self, schema: Json, depth: int, *, opened: bool = False) -> str:
        """Properties in the order of the schema, optional ones or not; `opened`: behind the brace."""
        required = schema.get("required") or []
        after, first = self._others(schema, depth) if takes_others(schema) else ('"}"', '"}"')
        for key, item in reversed(schema["properties"].items()):
            pair = f"{quoted(key + ':')} {self.value(item, depth + 1)}"
            with_comma = self.rule(f'"," {pair} {after}')
            opening = self.rule(f"{pair} {after}")
            if key in required:
                after, first = with_comma, opening
            else:
                after, first = self.rule(f"{with_comma} | {after}"), self.rule(f"{opening} | {first}")
        return first if opened else self.rule(f'"{{" {first}')

    def _others(self, schema: Json, depth: int) -> tuple[str, str]:
        """What ends an object that may hold other properties, behind one and behind the brace."""
        if not isinstance(others := schema.get("additionalProperties"), dict) or not others:
            return "more", "others"
        pair = f"KEY {self.value(others, depth + 1)}"
        return self.rule(f'("," {pair})* "}}"'), self.rule(f'({pair} ("," {pair})*)? "}}"')

    def _written(self, value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{self._written(item)}" for key, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._written, value)) + "]"
        return f"{self._quote}{value}{self._quote}" if isinstance(value, str) else json.dumps(value)


def _rules(marks: Marks) -> Callable[[Sequence[Function], bool], Rules]:
    def rules(functions: Sequence[Function], _parallel: bool) -> Rules:
        lines, bodies = [], []
        for i, function in enumerate(functions):
            writer = _Writer(parameters(function), f"f{i}", marks.quote)
            schema = parameters(function)
            body = writer.object({"properties": {}, **schema}, 0, opened=True)
            lines += writer.lines
            bodies.append(f"{body} {quoted(marks.end)}")
        shared = [
            f"string: {quoted(marks.quote)} string_rest",
            f"string_rest[lazy]: /(?s:.*){re.sub(r'([|])', r'[|]', marks.quote)}/",
            f'any: string | /{_NUMBER}/ | "true" | "false" | "null" | map | "[" (any ("," any)*)? "]"',
            'map: "{" others',
            'others: (pair ("," pair)*)? "}"',
            'more: ("," pair)* "}"',
            "KEY: /[A-Za-z_][A-Za-z0-9_-]{0,63}:/",
            "pair: KEY any",
        ]
        return Rules(bodies=bodies, lines=[*lines, *shared])

    return rules


class _State(enum.Enum):
    """`VALUE -> STRING -> VALUE`, `VALUE -> KEY -> VALUE`."""

    VALUE = enum.auto()
    KEY = enum.auto()
    STRING = enum.auto()


class GemmaArguments:
    """Arguments in this notation to JSON, as they come; the opening brace has not been read."""

    def __init__(self, quote: str) -> None:
        self._quote = quote
        self._state = _State.VALUE
        self._stack: list[str] = []
        self._held = ""

    def feed(self, text: str) -> tuple[str, int]:
        """See `ArgumentsReader`."""
        before = len(self._held)
        self._held += text
        out: list[str] = []
        at = 0
        while (step := self._step(at, out)) > at:
            at = step
            if not self._stack and self._state is _State.VALUE and out and out[-1] == "}":
                return "".join(out), at - before
        self._held = self._held[at:]
        return "".join(out), -1

    def _step(self, at: int, out: list[str]) -> int:
        """One token of the notation; the same offset where more text is needed."""
        text = self._held
        if at >= len(text):
            return at
        if self._state is _State.STRING:
            return self._in_string(at, out)
        if text.startswith(self._quote, at):
            out.append('"')
            self._state = _State.STRING
            return at + len(self._quote)
        if self._quote.startswith(text[at:]):
            return at
        char = text[at]
        if self._state is _State.KEY and char not in "}, \n":
            colon = text.find(":", at)
            if colon < 0:
                return at
            out.append(json.dumps(text[at:colon].strip(), ensure_ascii=False) + ": ")
            self._state = _State.VALUE
            return colon + 1
        return self._mark(char, at, out)

    def _mark(self, char: str, at: int, out: list[str]) -> int:
        out.append(char)
        if char in "{[":
            self._stack.append(char)
        elif char in "}]" and self._stack:
            self._stack.pop()
        in_object = bool(self._stack) and self._stack[-1] == "{"
        if char in "{,":
            self._state = _State.KEY if in_object else _State.VALUE
        elif char in "}]":
            self._state = _State.VALUE
        return at + 1

    def _in_string(self, at: int, out: list[str]) -> int:
        end = self._held.find(self._quote, at)
        cut = end if end >= 0 else len(self._held) - held_back(self._held, self._quote)
        if cut > at:
            out.append(json.dumps(self._held[at:cut], ensure_ascii=False)[1:-1])
        if end < 0:
            return cut
        is_key = bool(self._stack) and self._stack[-1] == "{" and self._held[end + len(self._quote) :].startswith(":")
        del is_key  # a quoted key is followed by a colon, which is copied as it stands
        out.append('"')
        self._state = _State.VALUE
        return end + len(self._quote)


def _format(name: str, marks: Marks) -> Format:
    return Format(
        name=name,
        fits=lambda template: marks.begin in template,
        openings=Openings(marked=(marks.begin, "call:", NAME, BRACE), with_brace=True),
        rules=_rules(marks),
        notation=Notation(
            arguments=lambda _properties: GemmaArguments(marks.quote),
            gaps=(marks.end,),
            enclosed=False,
        ),
        marks=(marks.begin, marks.end, marks.quote),
        writes_json=False,
    )


FORMAT = _format("gemma", Marks("<|tool_call>", "<tool_call|>", '<|"|>'))
FUNCTION_GEMMA = _format("function-gemma", Marks("<start_function_call>", "<end_function_call>", "<escape>"))
