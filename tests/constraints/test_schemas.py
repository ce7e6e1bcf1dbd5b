"""Real schemas survive, hostile ones are refused by their path in no time, and every answer that passes validates."""

from __future__ import annotations

import json
import random
import resource
import time

import jsonschema
import pytest

from backends.constraints.grammars import MAX_CACHED, Compiler
from backends.engine import JobError
from backends.formats.known import named
from backends.messages import JsonObject, JsonSchema, Pattern
from server.errors import ApiError
from server.schemas.answers import choice
from server.schemas.json_schema import checked
from tests.constraints.schemas import REAL, REFUSED, UNCOMPILABLE, thing
from tests.formats.walks import accepts, vocabulary, wander
from tests.present import present


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(vocabulary, named("generic"))


def constraint(schema, param: str = "schema") -> JsonSchema:
    return JsonSchema(checked(schema, param).text, param=param)


@pytest.mark.parametrize("name", REAL)
def test_whatever_a_real_schema_lets_pass_validates(compiler, name):
    grammar = compiler.compile(constraint(REAL[name]))
    dice, whole = random.Random(name), 0
    for _ in range(12):
        text = wander(grammar.start(), dice)
        if text is not None:
            whole += 1
            jsonschema.validate(json.loads(text), REAL[name])
    assert whole >= 4


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_schema_is_refused_by_its_path_before_any_work(name):
    schema, path = REFUSED[name]
    began = time.process_time()
    with pytest.raises(ApiError) as caught:
        checked(schema, "s")
    assert time.process_time() - began < 0.5
    assert (caught.value.status, caught.value.param) == (400, f"s{path}")
    assert present(caught.value.param) in caught.value.message


@pytest.mark.parametrize("name", UNCOMPILABLE)
def test_what_cannot_be_compiled_is_refused_by_its_path(compiler, name):
    schema, path = UNCOMPILABLE[name]
    with pytest.raises(JobError) as caught:
        compiler.compile(constraint(schema, "s"))
    assert caught.value.param == f"s{path}"
    assert present(caught.value.param) in caught.value.message
    for jargon in ("failed to compile", "coerce", "at 1("):
        assert jargon not in caught.value.message


def chain(n: int, link, place: str = "$defs"):
    """Definitions of which each leads to the next."""
    links = {f"a{i}": link({"$ref": f"#/{place}/a{i + 1}"}) for i in range(n)}
    return {"$ref": f"#/{place}/a0", place: {**links, f"a{n}": {"type": "string"}}}


COSTLY = {
    "references to references": chain(8_000, lambda onward: onward),
    "references through alternatives": chain(6_000, lambda onward: {"allOf": [onward]}),
    "references through items": chain(4_000, lambda onward: {"type": "array", "items": onward}),
    "references through properties": chain(3_900, lambda onward: {"properties": {"n": onward}}),
    "references elsewhere": chain(4_000, lambda onward: {"items": onward}, "x"),
    "references through types": chain(4_000, lambda onward: {"anyOf": [{"items": onward}]}),
    "many values": {"enum": [f"value {i}" for i in range(9_900)]},
    "optional properties": {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(290)}},
    "properties": thing(**{f"p{i}": {"type": "string"} for i in range(3_900)}),
    "counted": thing(a={"type": "string", "pattern": "(a{1,1000}){1,1000}"}),
    "far away": thing(a={"type": "string", "pattern": ".*a.{300}"}),
    "twice": thing(a={"type": "string", "pattern": "(.*a.{30}){3}"}),
    "greedy": thing(a={"type": "string", "pattern": "(a+)+$"}),
    "alternatives": {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}": {"type": "string"}}}, {"properties": {f"b{i}": {"type": "null"}}}]}
            for i in range(8)
        ]
    },
    "large": thing(
        **{
            f"group{i}": thing(**{f"field_{j}": {"type": "string", "description": "x" * 60} for j in range(20)})
            for i in range(40)
        }
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_costly_schema_is_compiled_or_refused_within_a_second(compiler, name):
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest, refused = 0.0, ""
    try:
        mask = compiler.compile(constraint(COSTLY[name])).start()
        for _ in range(60):
            step = time.process_time()
            allowed = mask.allowed()
            longest = max(longest, time.process_time() - step)
            mask.accept(next(token for token in (*b'a{"', *range(len(allowed))) if allowed[token]))
            if mask.ended:
                break
    except JobError as problem:
        refused = problem.message
    assert "costly" in refused or "schema" in refused or not refused
    assert time.process_time() - began < 1.5
    assert longest < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024


def test_json_of_any_shape_is_an_object(compiler):
    for text, good in (('{"a": [1, {"b": null}]}', True), ("{}", True), ("[1]", False), ("5", False), ("words", False)):
        assert accepts(compiler.compile(JsonObject()).start(), text) is good


def test_a_pattern_is_the_whole_answer(compiler):
    for text, good in (("ab/12", True), ("9ab/12", False), ("ab/1", False)):
        assert accepts(compiler.compile(Pattern("[a-z]+/[0-9]{2}")).start(), text) is good
    with pytest.raises(JobError) as caught:
        compiler.compile(Pattern("(?=a)b", param="guided_regex"))
    assert caught.value.param == "guided_regex"


def test_one_of_some_texts_is_taken_literally(compiler):
    texts = ["a.c", "[x]*", "ü/\n", "a|b"]
    grammar = compiler.compile(choice(texts, "guided_choice"))
    assert all(accepts(grammar.start(), text) for text in texts)
    assert not any(accepts(grammar.start(), text) for text in ("abc", "a", "x", ""))


def test_properties_come_in_the_clients_order(compiler):
    schema = thing(z={"type": "boolean"}, a={"type": "boolean"})
    assert accepts(compiler.compile(constraint(schema)).start(), '{"z": true, "a": false}')
    assert not accepts(compiler.compile(constraint(schema)).start(), '{"a": true, "z": false}')


def test_white_space_is_bounded(compiler):
    grammar = compiler.compile(constraint(thing(a={"type": "boolean"})))
    assert accepts(grammar.start(), '{\n    "a": true\n}')
    assert not accepts(grammar.start(), '{"a":' + "\n" * 3 + "true}")
    assert not accepts(grammar.start(), '{"a":' + " " * 100 + "true}")


def test_what_was_compiled_is_known_and_what_was_long_ago_is_not(compiler):
    compiled = compiler.compile(JsonObject())
    assert compiler.compile(JsonObject()) is compiled
    for i in range(MAX_CACHED):
        compiler.compile(Pattern(f"a{i}"))
    assert compiler.compile(JsonObject()) is not compiled


def test_a_new_schema_of_ten_kilobytes_costs_little(compiler):
    schema = {
        "type": "object",
        "properties": {f"field_{i}": {"type": "string", "maxLength": 99, "description": "d" * 40} for i in range(100)},
        "required": [f"field_{i}" for i in range(100)],
        "additionalProperties": False,
    }
    assert len(json.dumps(schema)) > 10_000
    began = time.process_time()
    compiler.compile(constraint(schema))
    assert time.process_time() - began < 0.15


def test_without_insisting_what_cannot_be_enforced_is_left_out_and_named():
    schema = thing(a={"type": "array", "uniqueItems": True}, b={"oneOf": [{"type": "string"}, {}]})
    loose = checked(schema, "s", strict=False)
    assert loose.unenforced == ["oneOf", "uniqueItems"]
    assert "uniqueItems" not in loose.text
    inexact = checked(thing(a={"enum": [2**60]}, b={"type": "object", "minProperties": 3}), "s", strict=False)
    assert inexact.unenforced == ["enum", "minProperties"]
    assert "anyOf" in loose.text
