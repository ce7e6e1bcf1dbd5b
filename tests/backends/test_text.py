"""Text streams: whatever the pieces, the text is the text, up to the first stop string."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from backends.messages import TokenLogprob
from backends.prompts.text import TextStream, find_stop, held_back

ALPHABET = "ab€😀<|\n"


def feed(stream: TextStream, pieces: list[bytes]) -> tuple[str, str | None]:
    out = ""
    for piece in pieces:
        text, _, stop = stream.push(piece)
        out += text
        if stop is not None:
            return out, stop
    return out + stream.flush().text, None


def chop(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(cut % (len(raw) + 1) for cut in cuts)})
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


@given(text=st.text(ALPHABET, max_size=40), cuts=st.lists(st.integers(0, 200), max_size=30))
def test_any_split_of_the_bytes_gives_the_text(text: str, cuts: list[int]) -> None:
    assert feed(TextStream(), chop(text.encode(), cuts)) == (text, None)


@given(
    text=st.text(ALPHABET, max_size=40),
    cuts=st.lists(st.integers(0, 200), max_size=30),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_text_ends_before_the_first_stop_string_however_it_arrives(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    out, stop = feed(TextStream(stops=stops), chop(text.encode(), cuts))

    starts = [text.find(s) for s in stops if s in text]
    if stop is None:
        assert not starts
        assert out == text
    else:
        assert text.startswith(out + stop)
        assert not any(s in out for s in stops)


def test_half_a_stop_string_is_held_back_and_released_when_it_is_none() -> None:
    stream = TextStream(stops=["<end>"])

    assert stream.push(b"a<en").text == "a"
    assert stream.push(b"x").text == "<enx"


def test_half_a_character_waits_for_its_rest() -> None:
    stream = TextStream()

    assert [stream.push(bytes([byte])).text for byte in "€".encode()] == ["", "", "€"]


def test_an_unfinished_character_is_dropped_at_the_end() -> None:
    stream = TextStream()

    assert stream.push(b"a\xe2\x82").text == "a"
    assert stream.flush().text == ""


def test_invalid_bytes_become_the_replacement_character() -> None:
    assert feed(TextStream(), [b"a\xff", b"b"]) == ("a\ufffdb", None)


def test_logprobs_travel_with_the_text_they_belong_to() -> None:
    stream = TextStream(stops=["<end>"], keep_logprobs=True)

    def push(raw: bytes) -> tuple[str, list[str]]:
        text, logprobs, _ = stream.push(raw, TokenLogprob(token=raw.decode(), logprob=0.0, bytes=raw))
        return text, [entry.token for entry in logprobs]

    assert push(b"a") == ("a", ["a"])
    assert push(b"<e") == ("", [])
    assert push(b"n") == ("", [])
    assert push(b"!") == ("<en!", ["<e", "n", "!"])
    assert push(b"<en") == ("", [])
    assert push(b"d>") == ("", [])


def test_logprobs_of_half_a_character_wait_for_the_other_half() -> None:
    stream = TextStream(keep_logprobs=True)

    def push(raw: bytes) -> tuple[str, list[bytes]]:
        text, logprobs, _ = stream.push(raw, TokenLogprob(token="\ufffd", logprob=0.0, bytes=raw))
        return text, [entry.bytes for entry in logprobs]

    assert push(b"a\xe2") == ("a", [])
    assert push(b"\x82") == ("", [])
    assert push(b"\xac") == ("\u20ac", [b"a\xe2", b"\x82", b"\xac"])


def test_the_earliest_stop_wins_and_of_several_there_the_longest() -> None:
    assert find_stop("xxabc", ["bc", "ab", "abc"]) == ("abc", 2)


def test_only_proper_prefixes_are_held_back() -> None:
    assert held_back("ab<|im", ["<|im_end|>"]) == 4
    assert held_back("ab<|x", ["<|im_end|>"]) == 0
