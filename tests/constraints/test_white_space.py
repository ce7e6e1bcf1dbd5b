"""White space in enforced JSON stands where a writer of JSON puts it, or nowhere; whatever a model would like."""

from __future__ import annotations

import json
import random
import re

import pytest

from backends.constraints.grammars import Compiler
from backends.formats.known import FORMATS, named
from backends.formats.pieces import CallArguments
from backends.messages import JsonObject, JsonSchema, ToolCalls
from tests.formats.walks import accepts, function, vocabulary, wander

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "array", "items": {"type": "string"}},
        "c": {"type": "object", "properties": {"x": {"type": "boolean"}, "y": {"type": "null"}}, "required": ["x"]},
        "d": {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}}}},
    },
    "required": ["a", "b", "c"],
}
CLOSED = json.loads(json.dumps(SCHEMA).replace('"type": "object",', '"type": "object", "additionalProperties": false,'))
VALUE = {"a": 1, "b": ["p q", 'r"\\', ":, {}"], "c": {"x": True, "y": None}, "d": [{"n": 5}, {}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": CLOSED}}
WRITTEN = [
    json.dumps(VALUE),
    json.dumps(VALUE, indent=2),
    json.dumps(VALUE, indent=4),
    json.dumps(VALUE, indent="\t"),
    json.dumps(VALUE, indent=8),
    json.dumps(VALUE, indent=1),
    json.dumps(VALUE, indent=0),
    json.dumps({**VALUE, "b": [], "d": []}, indent=3),
    '{\n  "a": 1, "b": ["x", "y"],\n  "c": {"x": true}, "d": [{\n      "n": 5\n    }, {}]\n}',
    json.dumps(VALUE, separators=(",", ":")),
]
SMALL = '{"a": 1, "b": ["x"], "c": {"x": true}}'
ODD = [
    SMALL.replace('"a":', '"a" :'),
    SMALL.replace('"a":', '"a"\n:'),
    SMALL.replace('"a":', '"a"\n  \t:'),
    SMALL.replace("1,", "1 ,"),
    SMALL.replace("1,", "1\n,"),
    SMALL.replace("],", "]\n  ,"),
    SMALL.replace("1, ", "1, \n"),
    SMALL.replace("1, ", "1,\n\n"),
    SMALL.replace("1, ", "1,  "),
    SMALL.replace(": 1", ":  1"),
    SMALL.replace(": 1", ":\n1"),
    SMALL.replace(": 1", ":\t1"),
    SMALL.replace("{", "{ ", 1),
    SMALL.replace("{", "{\n\n", 1),
    SMALL.replace("{", "{\r\n", 1),
    SMALL.replace("[", "[ "),
    SMALL.replace("]", " ]"),
    SMALL.replace("}}", "} }"),
    *(SMALL.replace("{", f"{{\n{' ' * n}", 1) for n in (9, 12, 40)),
    '{\n  "a": 1,\n    "b": ["x"],\n  "c": {"x": true}\n}',
    '{\n  "a": 1,\n  "b": ["x"],\n  "c": {"x": true}\n  }',
    '{\n  "a": 1,\n  "b": [\n     "x"\n  ],\n  "c": {"x": true}\n}',
    '{\n  "a": 1,\n\t"b": ["x"],\n  "c": {"x": true}\n}',
    '{\n\t\t\t"a": 1,\n\t\t\t"b": ["x"],\n\t\t\t"c": {"x": true}\n}',
    SMALL.replace('["x"]', "[\n]"),
    SMALL.replace('["x"]', "[\n         ]"),
    '{"a": 1, "b": ["x"], "c": {"x": true}\n}',
    f" {SMALL}",
    f"{SMALL} ",
    f"{SMALL}\n",
]
_STRING = r'"(?:[^"\\]|\\.)*"'
_OUTSIDE = re.compile(rf"{_STRING}|(\s+)")
_NEXT_TO = re.compile(r"(?:[{\[,]\n[ \t]*|\n[ \t]*(?=[}\]])|[:,] )")


@pytest.fixture(scope="module")
def compilers() -> dict[str, Compiler]:
    return {format_.name: Compiler(vocabulary, format_) for format_ in FORMATS}


def columns(text: str) -> set[str]:
    """The unit of each indented line, told from its depth outside of strings; one that is no multiple is `odd`."""
    units, depth = set(), 0
    for line in re.sub(_STRING, '""', text).split("\n"):
        words = line.lstrip(" \t")
        at = depth - words.startswith(("}", "]"))
        if depth and at:
            space = line[: len(line) - len(words)]
            units.add(space[: len(space) // at] if space[: len(space) // at] * at == space else "odd")
        depth += sum((char in "{[") - (char in "}]") for char in words)
    return units


def odd_space(text: str) -> list[str]:
    """White space outside of strings that no writer of JSON puts where it stands."""
    bare = re.sub(_STRING, '""', text)
    return re.findall(r"\s+", re.sub(r"(?<=[{\[,])\n[ \t]*(?=[^\s,:])|\n[ \t]*(?=[}\]])|(?<=[:,]) (?=\S)", "", bare))


@pytest.mark.parametrize("text", WRITTEN, ids=range(len(WRITTEN)))
@pytest.mark.parametrize("constraint", [JsonObject(), JsonSchema(json.dumps(CLOSED))], ids=["object", "schema"])
def test_what_writers_write_may_be_written(compilers, constraint, text) -> None:
    assert odd_space(text) == []
    assert accepts(compilers["generic"].compile(constraint).start(), text)


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("constraint", [JsonObject(), JsonSchema(json.dumps(CLOSED))], ids=["object", "schema"])
def test_what_no_writer_writes_may_not(compilers, constraint, text) -> None:
    assert not accepts(compilers["generic"].compile(constraint).start(), text)


@pytest.mark.parametrize("text", [*WRITTEN, *ODD], ids=range(len(WRITTEN) + len(ODD)))
def test_compact_is_without_any(compilers, text) -> None:
    grammar = compilers["generic"].compile(JsonSchema(json.dumps(CLOSED)), without_space=True)
    assert accepts(grammar.start(), text) is (text == WRITTEN[-1])


@pytest.mark.parametrize("without_space", [False, True], ids=["pretty", "compact"])
@pytest.mark.parametrize("name", [format_.name for format_ in FORMATS])
def test_arguments_of_calls_are_written_so_too(compilers, name: str, without_space: bool) -> None:
    calls = ToolCalls([function(TOOL)], required=True)
    grammar, dice, whole = compilers[name].compile(calls, without_space=without_space), random.Random(name), 0
    for _ in range(20):
        text = wander(grammar.start(), dice)
        if text is None:
            continue
        reader = named(name).read([TOOL])
        pieces = [*reader.feed(text), *reader.flush(cut=False)]
        arguments = "".join(piece.text for piece in pieces if isinstance(piece, CallArguments) and piece.number == 0)
        whole += 1
        json.loads(arguments)
        if named(name).writes_json:
            assert odd_space(arguments) == [], arguments
            assert not without_space or not re.search(r"\s", re.sub(_STRING, "", arguments)), arguments
    assert whole >= 5


@pytest.mark.parametrize("seed", range(40))
def test_a_model_that_loves_white_space_still_ends(compilers, seed: int) -> None:
    """Wherever some is allowed it is taken: there is always a way on, and it is JSON."""
    words, dice = vocabulary(), random.Random(seed)
    mask, written = compilers["generic"].compile(JsonSchema(json.dumps(CLOSED))).start(), b""
    for step in range(600):
        if mask.ended:
            break
        allowed = list(mask.allowed().nonzero()[0])
        assert allowed
        spaces = [t for t in allowed if words.pieces[t] and not words.pieces[t].strip()]
        closing = [t for t in allowed if words.pieces[t][:1] in b'"}]' or t in words.ends]
        some = spaces if spaces and dice.random() < 0.7 else closing if step > 60 and closing else allowed
        token = int(dice.choice(some))
        if token in words.ends:
            break
        mask.accept(token)
        written += words.pieces[token]
    text = written.decode("utf-8", "replace")
    assert odd_space(text) == [], text
    assert len(columns(text) - {""}) <= 1, text
    assert "odd" not in columns(text), text
    assert not re.search(r"[\[{]\s+[\]}]", re.sub(_STRING, '""', text)), text
