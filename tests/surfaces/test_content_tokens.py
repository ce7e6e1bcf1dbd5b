"""The tokens of content: joined, their bytes are the content, whatever else was written and however it came."""

from __future__ import annotations

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.formats import harmony, hermes, llama, mistral, qwen_xml
from backends.formats.base import Format
from backends.formats.pieces import CallArguments, Content
from backends.formats.splitter import Splitter
from backends.messages import Delta, FinishReason, TokenLogprob
from backends.prompts.text import TextStream
from server.output.content_tokens import ContentTokens
from server.output.sorting import Said, Sorter


def token(raw: bytes) -> TokenLogprob:
    return TokenLogprob(raw.decode("utf-8", "replace"), -1.0, raw)


def tokens(*texts: str) -> list[TokenLogprob]:
    return [token(text.encode()) for text in texts]


def names(found: list[TokenLogprob]) -> list[str]:
    return [entry.token for entry in found]


def written(found: list[TokenLogprob]) -> bytes:
    return b"".join(entry.bytes for entry in found)


def test_marks_and_space_around_content_are_no_part_of_it():
    waiting = ContentTokens()
    waiting.add(tokens("<think>", "\n", "hm", "\n", "</think>", "\n\n", "Par", "is"))

    assert names(waiting.of(21, 5)) == ["Par", "is"]
    assert waiting.rest() == []


def test_the_same_letters_elsewhere_are_not_taken_for_it():
    waiting = ContentTokens()
    waiting.add(tokens("<think>", "t", "</think>", "t"))

    (found,) = waiting.of(16, 1)
    assert (found.token, waiting.rest()) == ("t", [])


def test_a_token_comes_with_the_end_of_its_text():
    waiting = ContentTokens()
    waiting.add(tokens("a", "b <"))
    assert names(waiting.of(0, 2)) == ["a"]

    waiting.add(tokens("c"))
    assert names(waiting.of(2, 3)) == ["b <", "c"]


def test_of_a_token_that_only_begins_as_content_there_is_what_it_wrote_of_it():
    waiting = ContentTokens()
    waiting.add(tokens("é", "€.\n\n"))

    assert names(waiting.of(0, 3)) == ["é"]
    (last,) = waiting.rest()
    assert (last.token, last.bytes) == ("€.\n\n", "€.".encode())


def test_half_a_character_and_the_one_behind_it_are_told_apart():
    waiting = ContentTokens()
    waiting.add([token(b"\xf0\x9f"), token(b"\xe2\x82\xac"), token(b"\xf0x")])

    assert [entry.bytes for entry in waiting.of(1, 1)] == ["€".encode()]
    assert waiting.of(2, 1) == []
    assert [entry.bytes for entry in waiting.rest()] == [b"\xf0"]
    assert [entry.bytes for entry in waiting.of(3, 1)] == [b"x"]


def test_text_may_come_before_its_tokens():
    waiting = ContentTokens()
    assert waiting.of(0, 2) == []
    waiting.add(tokens("ab", "c"))
    assert names(waiting.of(2, 1)) == ["ab", "c"]


def test_what_was_skipped_is_no_ones_and_what_was_named_before_it_still_comes():
    waiting = ContentTokens()
    assert waiting.of(0, 2) == []
    waiting.skip_to(6)
    waiting.add(tokens("a", "b <", "c>", "d"))

    (first, last) = waiting.rest()
    assert (first.bytes, last.bytes) == (b"a", b"b")
    assert names(waiting.of(6, 1)) == ["d"]


@pytest.mark.parametrize(
    ("format_", "call"),
    [
        (hermes.FORMAT, '<tool_call>{"name":"f","arguments":{}}</tool_call>'),
        (qwen_xml.FORMAT, "<tool_call><function=f></function></tool_call>"),
    ],
)
def test_a_mark_behind_a_call_that_turns_out_to_be_text_has_its_tokens(format_, call):
    sorter = Sorter(Splitter(marks=None, opened=False, calls=format_.read()))
    said = sorter.said(Delta("j", 0, call + " <tool_call>", 2, tokens(call, " <tool_call>"), None, None))
    assert isinstance(said[-1].piece, CallArguments)

    said = sorter.said(Delta("j", 0, "no", 1, tokens("no"), "stop", None))

    assert names([entry for one in said for entry in one.tokens or []]) == [" <tool_call>", "no"]


@pytest.mark.parametrize(
    ("format_", "opening", "more"),
    [
        (hermes.FORMAT, "<think>", "hm, "),
        (hermes.FORMAT, '<tool_call>{"name":"f","arguments":{"a":"', "word "),
        (qwen_xml.FORMAT, "<tool_call><function=f><parameter=a>", "<word> "),
        (harmony.FORMAT, "<|channel|>analysis<|message|>", "hm, "),
        (harmony.FORMAT, "<|channel|>commentary to=functions.f<|message|>", '{"a":"'),
    ],
)
def test_of_a_long_thought_or_call_next_to_nothing_is_held(format_, opening, more):
    tools = [{"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}]
    marks = None if format_.reasons else ("<think>", "</think>")
    sorter = Sorter(Splitter(marks=marks, opened=False, calls=format_.read(tools)))
    sorter.said(Delta("j", 0, opening, 1, tokens(opening), None, None))

    tracemalloc.start()
    try:
        for _ in range(2_000):
            sorter.said(Delta("j", 0, more, 1, tokens(more), None, None))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 100_000


PARTS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    '{"name":"f","arguments":{"a":1}}',
    "<function=f>",
    "<parameter=a>",
    "</parameter>",
    "</function>",
    "<|channel|>analysis<|message|>",
    "<|channel|>commentary to=functions.f<|message|>",
    "<|channel|>final<|message|>",
    "<|end|>",
    "<|start|>assistant",
    "[TOOL_CALLS]",
    "f[ARGS]",
    '{"name":"f","parameters":{}}',
    ";",
    "\n",
    " ",
    "<",
    "é€😀",
    "ab",
]


def answered(raw: list[bytes], format_: Format, *, stops: list[str], batch: int, ends: bool) -> list[Said]:
    """What a worker and the server make of these tokens; several may come as one delta."""
    marks = None if format_.reasons else ("<think>", "</think>")

    def splitter() -> Splitter:
        return Splitter(marks=marks, opened=False, calls=format_.read(new_id=lambda: "id"))

    stream, sorter = TextStream(stops=stops, keep_logprobs=True, sorts=splitter()), Sorter(splitter())
    steps = []
    for piece in raw:
        steps.append(stream.push(piece, token(piece)))
        if steps[-1].stopped_by is not None:
            break
    else:
        steps.append(stream.flush(cut=not ends))
    said: list[Said] = []
    for group in (steps[i : i + batch] for i in range(0, len(steps), batch)):
        last = group[-1] is steps[-1]
        stop = group[-1].stopped_by
        reason: FinishReason | None = None if not last else "stop" if stop or ends else "length"
        text = "".join(step.text for step in group)
        logprobs = [entry for step in group for entry in step.logprobs]
        said += sorter.said(Delta("j", 0, text, len(group), logprobs, reason, stop))
    return said


def is_subsequence(some: list[str], of: list[str]) -> bool:
    left = iter(of)
    return all(name in left for name in some)


@given(
    format_=st.sampled_from([hermes.FORMAT, qwen_xml.FORMAT, harmony.FORMAT, llama.FORMAT, mistral.HEADED]),
    parts=st.lists(st.sampled_from(PARTS), max_size=10),
    cuts=st.lists(st.integers(0, 400), max_size=40),
    stops=st.lists(st.sampled_from(["b\n", "é", "</", " a", "€😀a"]), max_size=2),
    batch=st.integers(1, 4),
    ends=st.booleans(),
    tail=st.sampled_from([b"", b"\xe2\x82", b"\xff", b"\xf0\x9f\xe2\x82\xacx"]),
)
def test_joined_the_bytes_of_the_tokens_are_the_content(format_, parts, cuts, stops, batch, ends, tail):
    whole = "".join(parts).encode() + tail
    edges = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    raw = [whole[a:b] for a, b in itertools.pairwise(edges)]

    said = answered(raw, format_, stops=stops, batch=batch, ends=ends)

    content = "".join(entry.piece.text for entry in said if isinstance(entry.piece, Content))
    found = [entry for one in said for entry in one.tokens or []]
    assert written(found).decode("utf-8", "replace") == content
    assert all(entry.bytes for entry in found)
    assert all(isinstance(one.piece, Content) or one.tokens is None for one in said)
    names = [piece.decode("utf-8", "replace") for piece in raw]
    places = [name for name, _ in itertools.groupby(entry.token for entry in found)]
    assert is_subsequence(places, names)
