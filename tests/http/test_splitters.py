"""Sorting a model's text gives one result however it is cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.formats import hermes
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning, held_back
from backends.formats.splitter import Splitter
from backends.messages import Delta, FinishReason
from server.output.sorting import Sorter

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ARGS = '{"city": "Paris"}'


def call(number: int, name: str, arguments: str) -> list[Piece]:
    return [CallBegins(number, f"call_{number}", name), CallArguments(number, arguments)]


def sort(chunks: list[str], *, reasons: bool = True, opened: bool = False, tools: bool = True) -> list[Piece]:
    numbers = itertools.count()
    reader = hermes.FORMAT.read(new_id=lambda: f"call_{next(numbers)}") if tools else None
    splitter = Splitter(marks=("<think>", "</think>") if reasons else None, opened=opened, calls=reader)
    pieces = [piece for chunk in chunks for piece in splitter.feed(chunk)] + splitter.flush(cut=False)
    text = "".join(chunks)
    assert all(text.startswith(piece.text, piece.at) for piece in pieces if isinstance(piece, Content))
    return joined(pieces)


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbouring pieces of one kind as one."""
    result: list[Piece] = []
    for piece in pieces:
        if result and isinstance(piece, CallArguments) and isinstance(result[-1], CallArguments):
            result[-1] = CallArguments(piece.number, result[-1].text + piece.text)
        elif result and isinstance(piece, (Content, Reasoning)) and type(result[-1]) is type(piece):
            result[-1] = type(piece)(result[-1].text + piece.text)
        else:
            result.append(piece)
    return [Content(piece.text) if isinstance(piece, Content) else piece for piece in result]


CASES = [
    ("plain text", {}, [Content("plain text")]),
    ("a < b <thin <tool", {}, [Content("a < b <thin <tool")]),
    ("  leading and trailing \n", {}, [Content("  leading and trailing \n")]),
    ("<think>\nwhy not\n</think>\n\nyes", {}, [Reasoning("why not"), Content("yes")]),
    ("\n<think>why</think>yes", {}, [Reasoning("why"), Content("yes")]),
    ("<think>\n\n</think>\n\nyes", {}, [Content("yes")]),
    ("<think>cut at the", {}, [Reasoning("cut at the")]),
    ("<think>a\n\nb</th", {}, [Reasoning("a\n\nb</th")]),
    ("why not\n</think>\nyes", {"opened": True}, [Reasoning("why not"), Content("yes")]),
    ("yes <think>no</think>", {}, [Content("yes <think>no</think>")]),
    ("<think>x</think>", {"reasons": False}, [Content("<think>x</think>")]),
    (CALL, {}, call(0, "weather", ARGS)),
    (f"Let me see. \n{CALL}", {}, [Content("Let me see."), *call(0, "weather", ARGS)]),
    (f"{CALL}\n{CALL}\n", {}, [*call(0, "weather", ARGS), *call(1, "weather", ARGS)]),
    (f"{CALL}\nand then some  more", {}, [*call(0, "weather", ARGS), Content("and then some  more")]),
    (
        f"<think>hm</think>\n{CALL}",
        {},
        [Reasoning("hm"), *call(0, "weather", ARGS)],
    ),
    (CALL.removesuffix("</tool_call>"), {}, call(0, "weather", ARGS)),
    (CALL, {"tools": False}, [Content(CALL)]),
    ("<tool_call>{not json}</tool_call> after", {}, [Content("<tool_call>{not json}</tool_call> after")]),
    ("see \n<tool_call>[1]</tool_call>", {}, [Content("see \n<tool_call>[1]</tool_call>")]),
    ('<tool_call>{"name": 5}</tool_call>', {}, [Content('<tool_call>{"name": 5}</tool_call>')]),
    ('<tool_call>{"name": "f", "arg', {}, [Content('<tool_call>{"name": "f", "arg')]),
    ('<tool_call>{"name": "f"}</tool_call>', {}, call(0, "f", "{}")),
    (
        '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>.',
        {},
        [*call(0, "f", '{"x": "</tool_call>"}'), Content(".")],
    ),
]


@pytest.mark.parametrize(("text", "options", "expected"), CASES, ids=[repr(case[0][:30]) for case in CASES])
def test_text_is_sorted_the_same_at_every_cut(text, options, expected):
    assert sort([text], **options) == expected
    assert sort(list(text), **options) == expected
    for i, j in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert sort([text[:i], text[i:j], text[j:]], **options) == expected


@given(
    st.lists(
        st.sampled_from(
            [
                "<think>",
                "</think>",
                "<tool_call>",
                "</tool_call>",
                '{"name":"f","arguments":{}}',
                "\n",
                " ",
                "<",
                "é",
                "ab",
            ]
        ),
        max_size=12,
    )
)
def test_any_mixture_is_sorted_the_same_in_one_go_and_by_character(parts):
    text = "".join(parts)
    assert sort([text]) == sort(list(text)) == sort(parts)


@given(st.text(alphabet="<>/think tool_cal{}é\n", max_size=40))
def test_without_whole_tags_no_character_is_lost(text):
    if "<think>" in text or "<tool_call>" in text:
        return
    assert sort(list(text)) == ([Content(text)] if text else [])


def test_held_back_is_the_longest_beginning_of_the_tag():
    assert held_back("ab</t", "</think>") == 3
    assert held_back("</think>", "</think>") == 0
    assert held_back("", "</think>") == 0


@pytest.mark.parametrize(
    ("text", "reason", "stop", "expected"),
    [
        (CALL, "stop", None, "tool_calls"),
        (CALL, "tool_calls", None, "tool_calls"),
        ("no call", "stop", None, "stop"),
        (CALL, "length", None, "length"),
        (CALL[:40], "length", None, "length"),
        (CALL, "stop", "\n\n", "tool_calls"),
        (CALL[:60], "stop", "Paris", "stop"),
    ],
)
def test_whole_calls_turn_stop_into_tool_calls(text: str, reason: FinishReason, stop: str | None, expected: str):
    """A client that is told of calls runs them, so that a call that was cut is not told so."""
    sorter = Sorter(Splitter(marks=None, opened=False, calls=hermes.FORMAT.read()))
    sorter.said(Delta(id="j", index=0, text=text, n_tokens=1, finish_reason=reason, stop=stop))
    assert (sorter.finish_reason, sorter.stop) == (expected, stop)
    assert sorter.is_cut == (text != CALL and text != "no call")


def test_arguments_are_json():
    _, arguments = sort(['<tool_call>{"name": "f", "arguments": {"a": [1, null, "ü"]}}</tool_call>'])
    assert isinstance(arguments, CallArguments)
    assert json.loads(arguments.text) == {"a": [1, None, "ü"]}
