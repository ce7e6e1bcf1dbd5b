"""Numbers in enforced JSON end: every integer of 64 bits can be written, and no model writes zeros without end."""

from __future__ import annotations

import json

import pytest

from backends.constraints.grammars import Compiler
from backends.formats.known import named
from backends.messages import JsonObject, JsonSchema, ToolCalls
from tests.formats.walks import accepts, function, vocabulary

COMPILER = Compiler(vocabulary, named("hermes"))
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {}}}}
LONG = "1" * 20
TOOL = {"function": {"name": f"f{LONG}{LONG}", "parameters": {**NUMBERS, "required": ["a"]}}}


@pytest.mark.parametrize("without_space", [False, True])
@pytest.mark.parametrize(
    ("schema", "written"),
    [
        ({"type": "integer"}, "{}"),
        ({"type": "integer"}, "-{}"),
        ({"type": "number"}, "{}"),
        ({"type": "number"}, "0.{}"),
        ({"type": "number"}, "{0}.{0}e5"),
        ({"type": ["integer", "null"]}, "{}"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "{}"),
        ({"type": "integer", "minimum": 0}, "{}"),
        ({}, "[{0},{0},-{0}]"),
        (NUMBERS, '{{"a":{}}}'),
        (NUMBERS, '{{"a":{0},"b":[{0},{{"c":{0}}},"{0}{0}",{0}]}}'),
    ],
)
def test_a_number_has_at_most_twenty_digits_in_a_row(schema: dict, written: str, without_space: bool) -> None:
    grammar = COMPILER.compile(JsonSchema(json.dumps(schema)), without_space=without_space)
    assert accepts(grammar.start(), written.format(LONG))
    assert not accepts(grammar.start(), written.format(LONG + "1"))


def test_where_the_schema_leaves_no_other_way_digits_go_on() -> None:
    value = json.dumps({f"{LONG}{LONG}": f"{LONG}{LONG}"})
    assert accepts(COMPILER.compile(JsonObject()).start(), value)
    pattern = {"type": "string", "pattern": "^1{40}$"}
    assert accepts(COMPILER.compile(JsonSchema(json.dumps(pattern))).start(), f'"{LONG}{LONG}"')


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("hermes", '<tool_call>\n{{"name": "{name}", "arguments": {{"a": {n}}}}}\n</tool_call>'),
        ("mistral-args", '[TOOL_CALLS]{name}[ARGS]{{"a": {n}}}'),
        ("gemma", "<|tool_call>call:{name}{{a:{n}}}<tool_call|>"),
        ("qwen-xml", "<tool_call>\n<function={name}>\n<parameter=a>\n{n}\n</parameter>\n</function>\n</tool_call>"),
    ],
)
@pytest.mark.parametrize("content", [None, JsonObject()])
def test_the_same_in_calls_but_not_in_names(name: str, written: str, content: JsonObject | None) -> None:
    calls = ToolCalls([function(TOOL)], required=content is None, content=content)
    grammar = Compiler(vocabulary, named(name)).compile(calls)
    assert accepts(grammar.start(), written.format(name=f"f{LONG}{LONG}", n=LONG))
    assert not accepts(grammar.start(), written.format(name=f"f{LONG}{LONG}", n=LONG + "1"))
