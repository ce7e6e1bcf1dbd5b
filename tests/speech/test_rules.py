"""Which token may come next, and text with its times: as Whisper's authors do it, over a vocabulary of the test's."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from backends.speech.kind import Heard, Segment, Word
from backends.speech.rules import allowed, compression_ratio, stretches
from backends.speech.transcript import Transcript

FIRST, N = 100, 200
TOKENS: Any = SimpleNamespace(first_time=FIRST, end=80, special=(81, FIRST), n_vocab=N)


def may(ids: list[int], token: int) -> bool:
    return not any(begin <= token < end for begin, end in allowed(ids, TOKENS).banned)


@pytest.mark.parametrize(
    ("ids", "token", "is_allowed"),
    [
        ([], FIRST, True),
        ([], FIRST + 50, True),
        ([], FIRST + 51, False),
        ([], 5, False),
        ([FIRST], 5, True),
        ([FIRST], FIRST + 1, False),
        ([FIRST, 5], 6, True),
        ([FIRST, 5], FIRST, False),
        ([FIRST, 5], FIRST + 9, True),
        ([FIRST, 5], 80, True),
        ([FIRST, 5, FIRST + 9], FIRST + 9, True),
        ([FIRST, 5, FIRST + 9], FIRST + 8, False),
        ([FIRST, 5, FIRST + 9], 5, False),
        ([FIRST, 5, FIRST + 9], 80, True),
        ([FIRST, 5, FIRST + 9, FIRST + 9], 5, True),
        ([FIRST, 5, FIRST + 9, FIRST + 9], FIRST + 20, False),
        ([FIRST, 5], 90, False),
    ],
)
def test_times_come_in_pairs_and_never_go_back(ids: list[int], token: int, is_allowed: bool) -> None:
    assert may(ids, token) is is_allowed


def test_text_between_times_is_a_segment() -> None:
    ids = [FIRST, 1, 2, FIRST + 10, FIRST + 10, 3, FIRST + 20]
    found, done_s = stretches(ids, TOKENS, duration_s=30, time_s=0.1)
    assert [(one.begin_s, one.end_s, one.ids, one.first) for one in found] == [(0, 1, (1, 2), 1), (1, 2, (3,), 5)]
    assert done_s == 30


def test_a_window_that_ends_between_two_times_is_done_up_to_there() -> None:
    found, done_s = stretches([FIRST, 1, FIRST + 10, FIRST + 10], TOKENS, duration_s=5, time_s=0.1)
    assert (len(found), done_s) == (1, 1.0)


def test_text_without_a_last_time_lasts_to_the_end() -> None:
    found, done_s = stretches([FIRST + 2, 1, 2], TOKENS, duration_s=4, time_s=0.1)
    assert ([(one.begin_s, one.end_s) for one in found], done_s) == ([(0.2, 4)], 4)


def test_repeats_are_seen() -> None:
    assert compression_ratio("and so on " * 40) > 2.4 > compression_ratio("The quick brown fox jumps over the dog.")
    assert compression_ratio("") == 0


def transcript() -> Transcript:
    made = Transcript("transcribe", heard=Heard("a", "english", 3661.5, 3.0, 1.0))
    words = (Word("One", 0.5, 0.9), Word("two.", 0.9, 1.2))
    made.add([Segment(" One two.", 0.5, 1.25, [1], 50, 0.0, -0.1, 1.0, 0.0, words)])
    made.add([Segment(" Three --> four.", 3600.0, 3661.234, [2], 0, 0.0, -0.1, 1.0, 0.0)])
    return made


def test_subtitles_have_their_own_clocks() -> None:
    srt = transcript().body("srt", ()).decode()
    assert srt == ("1\n00:00:00,500 --> 00:00:01,250\nOne two.\n\n2\n01:00:00,000 --> 01:01:01,234\nThree -> four.\n\n")
    vtt = transcript().body("vtt", ()).decode()
    assert vtt.startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.250\nOne two.\n\n")
    assert len(re.findall("-->", vtt)) == 2


def test_text_is_the_text() -> None:
    assert transcript().body("text", ()) == b"One two. Three --> four.\n"


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt"])
def test_a_stream_of_pieces_is_the_document(form: Any) -> None:
    whole = transcript()
    streamed = Transcript("transcribe")
    pieces = [streamed.add([one], form) for one in whole.segments]
    assert all(pieces)
    assert "".join(pieces) == whole.whole(form) == streamed.whole(form)
