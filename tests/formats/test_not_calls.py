"""What begins like a call and is none is text, to the last letter and however it is cut, reasoning or not."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.formats.known import FORMATS, named
from backends.formats.pieces import CallArguments, CallBegins, Content, Piece, Reasoning
from backends.formats.splitter import splitter
from tests.formats.recorded import RECORDED, TOOLS

NAMES = [format_.name for format_ in FORMATS if not format_.reasons]
THINK = ("<think>", "</think>")


def marks(name: str) -> list[str]:
    format_ = named(name)
    return [*format_.marks, *format_.ends_reasoning(calls=True)]


def near_calls(name: str) -> list[str]:
    """Every mark alone, before words, in quotes, cut in two, and twice; and JSON that is no call."""
    texts = ["{", "{}", '{"a": 1}', '{"name": 5}', "[1]", "a < b, c > d"]
    for mark in marks(name):
        texts += [
            f"say {mark} first",
            f"`{mark}`",
            f"{mark[:-1]} x",
            f"x {mark}",
            f"{mark}{mark} x",
            f"{mark}?\n{mark}!",
        ]
    return texts


def sort(chunks: list[str], name: str, *, opened: bool) -> list[Piece]:
    made = splitter(named(name), THINK, opened=opened, tools=TOOLS, new_id=lambda: "id")
    assert made is not None
    pieces = [piece for chunk in chunks for piece in made.feed(chunk)] + made.flush(cut=False)
    text = "".join(chunks)
    assert all(text.startswith(piece.text, piece.at) for piece in pieces if isinstance(piece, Content))
    return pieces


def chop(text: str, cuts: list[int]) -> list[str]:
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(places)]


def joined(pieces: list[Piece], kind: type[Content | Reasoning]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


CUTS = st.lists(st.integers(0, 300), max_size=12)
EVERYWHERE = list(range(300))
CASES = [(name, text) for name in NAMES for text in near_calls(name)]


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), cuts=CUTS)
def test_in_an_answer(name: str, data: st.DataObject, cuts: list[int]) -> None:
    text = "".join(
        data.draw(st.lists(st.sampled_from([f"{near} " for near in near_calls(name)]), min_size=1, max_size=3))
    )
    text = f"Well, {text}."
    assert joined(sort(chop(text, cuts), name, opened=False), Content) == text


@pytest.mark.parametrize(("name", "text"), CASES, ids=range(len(CASES)))
def test_in_open_reasoning(name: str, text: str) -> None:
    written = f"Hm, {text} so."
    for chunks in ([f"{written}</think>yes"], list(f"{written}</think>yes"), [written, "</think>", "yes"]):
        pieces = sort(chunks, name, opened=True)
        assert (joined(pieces, Reasoning), joined(pieces, Content)) == (written, "yes")
        assert not any(isinstance(piece, CallBegins) for piece in pieces)


CALLS = [case for case in RECORDED if case.format in NAMES and case.grammatical]


@pytest.mark.parametrize("case", CALLS, ids=range(len(CALLS)))
@given(cuts=CUTS)
@example(cuts=EVERYWHERE)
def test_a_recorded_call_in_open_reasoning_is_the_same_call(case, cuts: list[int]) -> None:
    """Where an answer needs a mark for its calls, reasoning that is not closed ends with one."""
    outside = sort([case.text], case.format, opened=False)
    if not any(mark in case.text for mark in named(case.format).ends_reasoning(calls=True)):
        return
    inside = sort(chop(f"Hm. {case.text}", cuts), case.format, opened=True)

    def calls(pieces: list[Piece]) -> list[tuple[str, str]]:
        return [
            (call.name, "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.number == call.number))
            for call in pieces
            if isinstance(call, CallBegins)
        ]

    assert calls(inside) == calls(outside)
    assert joined(inside, Reasoning).startswith("Hm.")
