"""Every format's recorded answers are taken apart the same however they are cut, and its templates are recognised."""

from __future__ import annotations

import itertools
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.formats.call_arguments import JsonScan
from backends.formats.known import FORMATS, named, recognise
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from tests.formats.recorded import RECORDED, TEMPLATES, TOOLS, Recorded


def read(name: str, chunks: list[str], *, cut: bool = False) -> list[Piece]:
    return read_to_its_end(name, chunks, cut=cut)[0]


def read_to_its_end(name: str, chunks: list[str], *, cut: bool) -> tuple[list[Piece], bool]:
    """What was read, content at its place in the text, and whether the text ended inside a call."""
    ids = (f"id{i}" for i in itertools.count())
    reader = named(name).read(TOOLS, new_id=lambda: next(ids))
    pieces = [piece for chunk in chunks for piece in reader.feed(chunk)] + reader.flush(cut=cut)
    text, before = "".join(chunks), 0
    for piece in pieces:
        if isinstance(piece, Content):
            assert piece.text
            assert text[piece.at : piece.at + len(piece.text)] == piece.text
            assert piece.at >= before
            before = piece.at + len(piece.text)
    return joined(pieces), reader.is_cut


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
    result = [Content(piece.text) if isinstance(piece, Content) else piece for piece in result]
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


@pytest.mark.parametrize("case", [c for c in RECORDED if c.grammatical], ids=name_of)
def test_half_a_call_is_no_text(case):
    """From its mark to the end of its arguments a call that was cut is a call, or nothing before its name is whole."""
    marks = {mark for format_ in FORMATS for mark in (*format_.marks, *format_.ends_reasoning(calls=True))}
    names = [piece.name for piece in case.pieces if isinstance(piece, CallBegins)]
    words = next((piece.text for piece in case.pieces if isinstance(piece, Content)), "")
    bare = case.text.startswith("{")
    n_cut = 0
    for end in range(len(case.text)):
        text = case.text[:end]
        pieces, is_cut = read_to_its_end(case.format, [text], cut=True)
        assert (pieces, is_cut) == read_to_its_end(case.format, list(text), cut=True)
        seen = [piece.name for piece in pieces if isinstance(piece, CallBegins)]
        assert seen == names[: len(seen)]
        said = "".join(piece.text for piece in pieces if isinstance(piece, Content))
        half_a_mark = any(text.endswith(mark[:n]) for mark in marks for n in range(1, len(mark)))
        assert words.startswith(said.rstrip()) or half_a_mark or (bare and not seen)
        arguments = [piece.text for piece in pieces if isinstance(piece, CallArguments)]
        whole = arguments == [piece.text for piece in case.pieces if isinstance(piece, CallArguments)][: len(seen)]
        assert is_cut or whole
        n_cut += is_cut
    assert n_cut or not names


@pytest.mark.parametrize(
    ("name", "text", "called", "arguments"),
    [
        ("hermes", '<tool_call>\n{"name": "add", "argu', "add", None),
        ("hermes", '<tool_call>\n{"name": "ad', None, None),
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"numbers": [1, 2', "add", '{"numbers": [1, 2'),
        ("llama", '{"name": "add", "param', "add", None),
        ("mistral", '[TOOL_CALLS] [{"name": "add"', "add", None),
        ("mistral-args", "[TOOL_CALLS]add[ARGS]", "add", None),
        ("mistral-args", "[TOOL_CALLS]ad", None, None),
        ("gemma", "<|tool_call>call:ad", None, None),
        ("gemma", "<|tool_call>call:add{numbers:[1", "add", '{"numbers": [1'),
        ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>", "add", None),
        ("deepseek-r1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```js", "add", None),
        ("qwen-xml", "<tool_call>\n<function=ad", None, None),
        ("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nPa", "get_weather", '{"city": "Pa'),
        ("harmony", "<|channel|>commentary to=functions.add <|constrain|>js", "add", None),
        ("harmony", "<|channel|>commentary to=functions.ad", None, None),
        ("harmony", '<|channel|>commentary to=functions.add <|message|>{"numbers', "add", '{"numbers'),
    ],
)
def test_what_is_told_of_a_call_that_was_cut(name, text, called, arguments):
    begins = [CallBegins(0, "id0", called)] if called else []
    expected = [*begins, *([CallArguments(0, arguments)] if arguments else [])]
    assert read_to_its_end(name, [text], cut=True) == (expected, True)
    assert read_to_its_end(name, list(text), cut=True) == (expected, True)


def test_a_call_after_a_whole_one_may_be_cut_as_well():
    first = '{"name": "add", "arguments": {}}'
    text = f'[TOOL_CALLS] [{first}, {{"name": "get_w'
    assert read_to_its_end("mistral", [text], cut=True) == ([CallBegins(0, "id0", "add"), CallArguments(0, "{}")], True)
    pieces, is_cut = read_to_its_end("mistral", [f'[TOOL_CALLS] [{first}, {{"name": "add", "ar'], cut=True)
    assert (pieces[-1], is_cut) == (CallBegins(1, "id1", "add"), True)
    assert read_to_its_end("mistral", [f"[TOOL_CALLS] [{first}"], cut=True)[1] is False


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 7}',
        '{"name": "Ann", "parameters": {"a": 1}}',
        '{"name": "Ann", "age',
        '{"na',
        '{"name": "Ann"} and more',
    ],
)
def test_an_object_that_names_no_function_is_text_where_calls_need_no_mark(text):
    for cut in (True, False):
        assert read_to_its_end("llama", [text], cut=cut) == ([Content(text)], False)
        assert read_to_its_end("llama", list(text), cut=cut) == ([Content(text)], False)


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


@pytest.mark.parametrize("name", ["harmony", "deepseek", "hermes"])
def test_a_long_text_of_marks_costs_no_more_in_one_piece(name: str) -> None:
    text = named(name).ends_reasoning(calls=True)[-1] * 10_000

    def cost(length: int) -> float:
        reader, start = named(name).read(TOOLS), time.process_time()
        for at in range(0, len(text), length):
            reader.feed(text[at : at + length])
        return time.process_time() - start

    assert min(cost(len(text)) for _ in range(2)) < 3 * max(cost(500) for _ in range(2))
