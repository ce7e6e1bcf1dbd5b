"""Every format's recorded answers are taken apart the same however they are cut, and its templates are recognised."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.formats.known import FORMATS, named, recognise
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from backends.formats.reading import JsonScan
from tests.formats.recorded import RECORDED, TEMPLATES, TOOLS, Recorded


def read(name: str, chunks: list[str]) -> list[Piece]:
    ids = (f"id{i}" for i in itertools.count())
    reader = named(name).read(TOOLS, new_id=lambda: next(ids))
    return joined([piece for chunk in chunks for piece in reader.feed(chunk)] + reader.flush())


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring text as one, and arguments as canonical JSON where they are whole."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        if isinstance(piece, CallBegins) or type(last) is not type(piece):
            result.append(piece)
        elif isinstance(piece, CallArguments):
            result[-1] = CallArguments(piece.number, last.text + piece.text)
        else:
            result[-1] = type(piece)(last.text + piece.text)
    return [_canonical(piece) if isinstance(piece, CallArguments) else piece for piece in result]


def _canonical(piece: CallArguments) -> CallArguments:
    try:
        return CallArguments(piece.number, json.dumps(json.loads(piece.text)))
    except ValueError:
        return piece


def name_of(case: Recorded) -> str:
    return f"{case.format}: {case.text[:40]!r}"


@pytest.mark.parametrize("case", RECORDED, ids=name_of)
def test_a_recorded_answer_means_the_same_at_every_cut(case):
    assert read(case.format, [case.text]) == case.pieces
    assert read(case.format, list(case.text)) == case.pieces
    for i in range(len(case.text)):
        assert read(case.format, [case.text[:i], case.text[i:]]) == case.pieces
    dice = random.Random(case.text)
    for _ in range(40):
        cuts = sorted(dice.sample(range(len(case.text) + 1), 3))
        assert read(case.format, [case.text[a:b] for a, b in itertools.pairwise([0, *cuts, len(case.text)])]) == (
            case.pieces
        )


@pytest.mark.parametrize("case", RECORDED, ids=name_of)
def test_an_answer_cut_short_gives_what_is_certain_and_never_fails(case):
    names = [piece.name for piece in case.pieces if isinstance(piece, CallBegins)]
    for end in range(len(case.text)):
        pieces = read(case.format, list(case.text[:end]))
        seen = [piece.name for piece in pieces if isinstance(piece, CallBegins)]
        assert seen == names[: len(seen)]


@pytest.mark.parametrize("case", [c for c in RECORDED if len(c.pieces) > 1], ids=name_of)
def test_arguments_come_before_the_call_is_over(case):
    reader = named(case.format).read(TOOLS, new_id=lambda: "id")
    first, whole = None, 0
    for at, char in enumerate(case.text):
        pieces = reader.feed(char)
        whole += sum(isinstance(piece, CallArguments) for piece in pieces)
        if first is None and any(isinstance(piece, CallBegins) for piece in pieces):
            first = at
    assert first is not None or whole == 0
    if case.grammatical:
        assert whole > 1


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_a_template_is_known_by_its_words(name):
    assert recognise(TEMPLATES[name]).name == name


def test_every_format_has_a_template_and_an_answer_here():
    names = {format_.name for format_ in FORMATS}
    assert names == set(TEMPLATES) == {case.format for case in RECORDED}


FRAGMENTS = [
    *sorted({mark for format_ in FORMATS for mark in format_.marks}),
    *("{", "}", "[", "]", '"', ":", ",", ";", "\n", " ", "a", "é", "\\", "name", "<function=f>", "<parameter=x>"),
    *('{"name": "f", "arguments": {}}', '{"x": "', "call:f{", "call:f{a:1}", "</parameter>", "</function>"),
    *("<|channel|>final<|message|>", " to=functions.f", "get_weather", "function", "\n```json\n", "[ARGS]{}"),
]


@given(st.sampled_from([format_.name for format_ in FORMATS]), st.lists(st.sampled_from(FRAGMENTS), max_size=14))
def test_any_mixture_of_marks_is_read_the_same_in_one_go_and_by_character(name, parts):
    text = "".join(parts)
    assert read(name, [text]) == read(name, list(text)) == read(name, parts)


@pytest.mark.parametrize("name", [format_.name for format_ in FORMATS])
def test_text_without_marks_is_content_to_the_last_character(name):
    text = "  a < b, [c] `d` <e>\n\n f(x) = y; ünï \n"
    assert read(name, list(text)) == [Content(text)]


def test_reasoning_is_apart_where_the_format_has_channels():
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes"
    assert read("harmony", list(text)) == [Reasoning("hm"), Content("yes")]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    ),
    st.integers(0, 50),
)
def test_the_end_of_json_is_found_at_every_cut(value, cut):
    text = json.dumps([value], ensure_ascii=False)
    assert JsonScan().end(text + "]}x") == len(text)
    scan, cut = JsonScan(), min(cut, len(text))
    first = scan.end(text[:cut])
    assert (first if first >= 0 else cut + scan.end(text[cut:])) == len(text)


def test_ids_are_what_the_family_wants():
    assert all(
        len(named(name).new_id()) == 9 and named(name).new_id().isalnum() for name in ("mistral", "mistral-args")
    )
    assert named("hermes").new_id().startswith("call_")
