"""What a format's grammar lets pass is what its reader reads: recorded answers, and whatever a mask allows."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest

from backends.constraints.grammars import Compiler
from backends.formats.known import FORMATS, named
from backends.formats.pieces import CallArguments, CallBegins, Content
from backends.machine.kernel import at_most
from backends.messages import Constraint, JsonSchema, ToolCalls
from tests.formats.recorded import ADD, RECORDED, TOOLS, WEATHER
from tests.formats.test_reading import name_of, read
from tests.formats.walks import accepts, function, vocabulary, wander

NAMES = [format_.name for format_ in FORMATS]
HARD = {
    "type": "function",
    "function": {
        "name": "hard",
        "parameters": {
            "type": "object",
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"n": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
                    "required": ["n"],
                    "additionalProperties": False,
                }
            },
            "properties": {
                "list": {"$ref": "#/$defs/node"},
                "kind": {"enum": ["a b", 'q"q', "é"]},
                "maybe": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
            },
            "required": ["list", "kind"],
            "additionalProperties": False,
        },
    },
}
NOTHING = {"type": "function", "function": {"name": "nothing"}}
OFFERED = [*TOOLS, HARD, NOTHING]


@pytest.fixture(scope="module")
def compilers():
    return {format_.name: Compiler(vocabulary, format_) for format_ in FORMATS}


def mask(compilers, name: str, constraint: Constraint):
    return compilers[name].compile(constraint).start()


@pytest.mark.parametrize("case", [case for case in RECORDED if case.grammatical], ids=name_of)
def test_a_recorded_answer_is_grammatical(compilers, case):
    calls = ToolCalls([function(tool) for tool in TOOLS])
    assert accepts(mask(compilers, case.format, calls), case.text)


@pytest.mark.parametrize("name", NAMES)
def test_any_text_without_a_call_passes_where_none_is_required(compilers, name):
    opening = "<|channel|>final<|message|>" if name == "harmony" else ""
    text = opening + "  Hällo <b>, [x] {y}: \n\n* 1. `z`"
    auto, required = (ToolCalls([function(WEATHER)], required=flag) for flag in (False, True))
    assert accepts(mask(compilers, name, auto), text)
    assert not accepts(mask(compilers, name, required), text)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_required_call_may_be_it_reads_and_validates(compilers, name):
    tools = {tool["function"]["name"]: tool for tool in OFFERED}
    grammar = compilers[name].compile(ToolCalls([function(tool) for tool in OFFERED], required=True))
    dice, whole = random.Random(name), 0
    for _ in range(24):
        walk = grammar.start()
        text = wander(walk, dice)
        if text is None:
            continue
        whole += 1
        pieces = read_offered(name, text)
        begun = [piece for piece in pieces if isinstance(piece, CallBegins)]
        assert begun, text
        assert name == "harmony" or pieces[0] is begun[0], text  # words may only stand behind a call
        for call in begun:
            arguments = "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.number == call.number)
            schema = tools[call.name]["function"].get("parameters", {"maxProperties": 0})
            jsonschema.validate(json.loads(arguments), schema)
        assert walk.called
    assert whole >= 6


ODD = {
    "undescribed": {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a", "b"]},
    "objects": {"type": "object", "properties": {"o": {"enum": [{"z": [1, "q"]}, [None]]}}, "required": ["o"]},
    "others": {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": {"type": "integer"}},
    "some": {"type": "object", "properties": {"l": {"type": "array", "minItems": 1, "items": {"type": "null"}}}},
    "either": {"anyOf": [{"type": "object", "properties": {"p": {"type": "string"}}, "required": ["p"]}]},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tool", [key for key in ODD if key != "either"])
def test_an_odd_schema_is_one_that_can_be_called(compilers, name, tool):
    offered = {"type": "function", "function": {"name": tool, "parameters": ODD[tool]}}
    grammar = compilers[name].compile(ToolCalls([function(offered)], required=True, parallel=False))
    dice = random.Random(name)
    texts = [text for _ in range(4) if (text := wander(grammar.start(), dice)) is not None]
    for text in texts:
        reader = named(name).read([offered], new_id=lambda: "id")
        pieces = reader.feed(text) + reader.flush(cut=False)
        arguments = json.loads("".join(piece.text for piece in pieces if isinstance(piece, CallArguments)))
        if (name, tool) != ("qwen-xml", "others"):  # its notation has no types for what no schema names
            jsonschema.validate(arguments, ODD[tool])
    assert texts or (name, tool) == ("qwen-xml", "undescribed")  # these walks find no line end


@pytest.mark.parametrize("tool", ["others", "either", "undescribed"])
def test_arguments_that_no_schema_describes_can_be_written(compilers, tool):
    p, q = ("a", "b") if tool == "undescribed" else ("p", "q")
    offered = {"type": "function", "function": {"name": tool, "parameters": ODD[tool]}}
    calls = {
        "gemma": f'<|tool_call>call:{tool}{{{p}:<|"|>5x<|"|>,{q}:6}}<tool_call|>',
        "qwen-xml": f"<tool_call>\n<function={tool}>\n<parameter={p}>\n5x\n</parameter>\n"
        f"<parameter={q}>\n6\n</parameter>\n</function>\n</tool_call>",
    }
    if tool == "others":
        calls["gemma"] = calls["gemma"].replace('<|"|>5x<|"|>', "5")
        calls["qwen-xml"] = calls["qwen-xml"].replace("5x", "5")
    for name, text in calls.items():
        assert accepts(mask(compilers, name, ToolCalls([function(offered)], required=True)), text)
        pieces = named(name).read([offered], new_id=lambda: "id").feed(text)
        assert json.loads("".join(p.text for p in pieces if isinstance(p, CallArguments))) == {
            p: 5 if tool == "others" else "5x",
            q: 6,
        }


def read_offered(name: str, text: str):
    ids = iter(f"id{i}" for i in range(1000))
    reader = named(name).read(OFFERED, new_id=lambda: next(ids))
    return [piece for char in text for piece in reader.feed(char)] + reader.flush(cut=False)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "harmony"])
def test_parallel_calls_follow_each_other_only_where_they_may(compilers, name):
    case = next((c for c in RECORDED if c.format == name and c.grammatical and len(c.pieces) >= 4), None)
    if case is None:
        assert name in ("generic", "function-gemma")  # which share the rules of others
        return
    for parallel in (True, False):
        calls = ToolCalls([function(tool) for tool in TOOLS], parallel=parallel)
        assert accepts(mask(compilers, name, calls), case.text) is parallel


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_a_schema_or_a_call(compilers, name):
    form = JsonSchema('{"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false}')
    constraint = ToolCalls([function(ADD)], content=form)
    opening = "<|channel|>final<|message|>" if name == "harmony" else ""
    assert accepts(mask(compilers, name, constraint), opening + '{"a": 5}')
    assert not accepts(mask(compilers, name, constraint), opening + "words")
    assert not accepts(mask(compilers, name, constraint), opening + '{"a": "5"}')


def test_text_is_read_as_it_was_written(compilers):
    for name in NAMES:
        opening = "<|channel|>final<|message|>" if name == "harmony" else ""
        assert read(name, [opening + "a, b"]) == [Content("a, b")]


def test_a_grammar_is_not_compiled_where_its_stack_may_find_no_room():
    compiler, form = Compiler(vocabulary, named("generic")), JsonSchema('{"type": "object"}')
    with at_most(1 << 30), pytest.raises(RuntimeError, match="at_most"):
        compiler.compile(form)

    assert accepts(compiler.compile(form).start(), "{}")
