"""Words about calls are words: only the name of an offered function and its arguments make a call, to grammars too."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.constraints.grammars import Compiler
from backends.formats.known import FORMATS, named
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece
from backends.formats.splitter import splitter
from backends.messages import JsonSchema, ToolCalls
from tests.formats.recorded import RECORDED, TOOLS
from tests.formats.test_not_calls import chop, near_calls
from tests.formats.walks import accepts, function, vocabulary

NAMES = [format_.name for format_ in FORMATS]
FUNCTIONS = [function(tool) for tool in TOOLS]
ENDS = "harmony"
"""A call ends its answers."""


def one_call(name: str, number: int = 0) -> str:
    """A recorded call of the format without any words before it."""
    cases = [c for c in RECORDED if c.format == name and c.grammatical and isinstance(c.pieces[0], CallBegins)]
    return cases[number % len(cases)].text


def mentions(name: str) -> list[str]:
    """The calls of an unknown function, in quotes and fences, beside every mark alone."""
    unknown = one_call(name).replace("get_weather", "get_wealth")
    objects = [
        '{"name": "get_weather"}',
        '{"name": "get_weather", "city": "Paris"}',
        '{"name": "Ann", "parameters": {}}',
    ]
    fences = [f"```\n{mark}\n```" for mark in named(name).marks]
    texts = [*near_calls(name), *fences, *objects, unknown, f"`{unknown}`", f"Say {unknown} or {unknown}."]
    return [text for text in texts if not text.endswith("<|end|>")]  # which ends a part of an answer


def sort(name: str, chunks: list[str], *, constraint: ToolCalls | JsonSchema | None, cut: bool = False) -> list[Piece]:
    tools = TOOLS if isinstance(constraint, ToolCalls) else []
    made = splitter(named(name), None, opened=False, tools=tools, only=constraint, new_id=lambda: "id")
    if made is None:
        return [Content("".join(chunks))]
    return [piece for chunk in chunks for piece in made.feed(chunk)] + made.flush(cut=cut)


def calls(pieces: list[Piece]) -> list[tuple[str, str]]:
    return [
        (call.name, "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.number == call.number))
        for call in pieces
        if isinstance(call, CallBegins)
    ]


def content(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Content))


@pytest.fixture(scope="module")
def compilers() -> dict[str, Compiler]:
    return {format_.name: Compiler(vocabulary, format_) for format_ in FORMATS}


AUTO = ToolCalls(FUNCTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_a_mention_may_be_written_and_is_content(compilers, name: str) -> None:
    grammar = compilers[name].compile(AUTO)
    for text in mentions(name):
        assert accepts(grammar.start(), text), text
        for chunks in ([text], list(text)):
            pieces = sort(name, chunks, constraint=AUTO)
            assert (calls(pieces), content(pieces)) == ([], text)


@pytest.mark.parametrize("name", NAMES)
def test_behind_a_mention_a_call_is_one_and_behind_a_call_there_is_text(compilers, name: str) -> None:
    call, grammar = one_call(name), compilers[name].compile(AUTO)
    called = calls(sort(name, [call], constraint=AUTO))
    bare = call.startswith("{")
    for mention in mentions(name):
        text = call if bare else f"{mention} {call}"
        more = "" if name == ENDS else f" {mention} </x>"
        assert accepts(grammar.start(), text + more), text + more
        pieces = sort(name, list(text + more), constraint=AUTO)
        assert calls(pieces) == called
        assert content(pieces) == ("" if bare else mention) + more.lstrip()


@pytest.mark.parametrize("name", [name for name in NAMES if name != ENDS])
def test_text_behind_a_required_call_is_content_as_well(compilers, name: str) -> None:
    grammar, call = compilers[name].compile(ToolCalls(FUNCTIONS, required=True)), one_call(name)
    for more in (" so.", "\n</think>", "\n<", "; no", ", no", "\n[x]"):
        assert accepts(grammar.start(), call + more), more
        assert content(sort(name, [call + more], constraint=AUTO)) == more.lstrip()


@pytest.mark.parametrize("name", NAMES)
def test_only_a_function_that_may_be_called_is_called(compilers, name: str) -> None:
    other = ToolCalls([next(f for f in FUNCTIONS if f.name == "add")])
    call = one_call(name)
    assert accepts(compilers[name].compile(other).start(), call)
    for constraint in (other, None):
        pieces = sort(name, list(call), constraint=constraint)
        assert (calls(pieces), content(pieces)) == ([], call)


@pytest.mark.parametrize("name", NAMES)
def test_a_call_in_the_strings_of_an_answer_in_json_is_none(compilers, name: str) -> None:
    form = JsonSchema('{"type": "object"}')
    text = "<|channel|>final<|message|>" if name == ENDS else ""
    answer = json.dumps({"a": f"say {one_call(name)} now", "b": [one_call(name)]}, ensure_ascii=False)
    for constraint in (ToolCalls(FUNCTIONS, content=form), form):
        assert accepts(compilers[name].compile(constraint).start(), text + answer)
        pieces = sort(name, list(text + answer), constraint=constraint)
        assert (calls(pieces), content(pieces)) == ([], answer)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40)
@given(data=st.data())
def test_however_a_text_of_mentions_and_calls_is_cut_it_means_the_same(name: str, data: st.DataObject) -> None:
    tricky = {"city": data.draw(st.sampled_from(['<x> "y" {é}', "[TOOL_CALLS]", "a\\b", "</tool_call>", "😀 ; , ]"]))}
    call = one_call(name, data.draw(st.integers(0, 3)))
    if named(name).writes_json:
        call = call.replace('{"city": "Paris"}', json.dumps(tricky, ensure_ascii=False))
    parts = data.draw(st.lists(st.sampled_from([*mentions(name), call, " ", "\n", "so"]), min_size=1, max_size=5))
    text = "".join(parts)
    whole = sort(name, [text], constraint=AUTO)
    pieces = sort(name, chop(text, data.draw(st.lists(st.integers(0, 900), max_size=12))), constraint=AUTO)
    assert (calls(pieces), content(pieces)) == (calls(whole), content(whole))
    for called, arguments in calls(whole):
        assert called in ("get_weather", "add")
        assert isinstance(json.loads(arguments), dict)


NOTHING = {"type": "function", "function": {"name": "nothing", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"name": "nothing"}</tool_call>'),
        ("mistral", '[TOOL_CALLS][{"name": "nothing"}, {"name": "nothing"}]'),
        ("phi", '<|tool_call|>[{"name": "nothing" }]<|/tool_call|>'),
    ],
)
def test_a_function_that_asks_for_nothing_is_called_by_its_name(compilers, name: str, text: str) -> None:
    constraint = ToolCalls([*FUNCTIONS, function(NOTHING)])
    assert accepts(compilers[name].compile(constraint).start(), text)
    made = named(name).read([*TOOLS, NOTHING])
    pieces = [piece for char in text for piece in made.feed(char)] + made.flush(cut=False)
    assert calls(pieces) == [("nothing", "{}")] * text.count("nothing")
    assert content(pieces) == ""
