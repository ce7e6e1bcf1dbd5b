"""When a fill-in-the-middle answer ends: by the clock at the end of a line, by a line that begins too far left."""

from __future__ import annotations

import pytest

from server.output.line_limits import LineLimits, LineWatch


def watch(**limits) -> LineWatch:
    made = LineWatch(LineLimits(**limits))
    made.begin(100.0)
    return made


def test_without_limits_nothing_ends_it():
    free = watch()
    assert free.deadline is None
    assert free.text("a\n", 100) == ("a\n", False)
    assert free.text("b\n", 9000) == ("b\n", False)
    assert free.deadline is None


def test_the_prompt_has_a_deadline_until_the_first_text():
    timed = watch(prompt_s=0.5)
    assert timed.deadline == 100.5
    timed.text("a", 100.2)
    assert timed.deadline is None


def test_when_the_time_is_up_the_line_is_finished():
    timed = watch(predict_s=1)
    assert timed.deadline is None
    assert timed.text("a", 103) == ("a", False)
    assert timed.deadline == 105
    assert timed.text("b\n", 103.9) == ("b\n", False)
    assert timed.text("c", 104.1) == ("c", False)
    assert timed.text("d\nefg", 104.2) == ("d\n", True)


@pytest.mark.parametrize("pieces", [["a\n  b\n c"], ["a", "\n", " ", " ", "b", "\n", " ", "c"], ["a\n  b", "\n c"]])
def test_a_line_that_begins_too_far_left_ends_it_however_it_comes(pieces):
    indented = watch(indent=2)
    said, ended = "", False
    for piece in pieces:
        assert not ended
        text, ended = indented.text(piece, 100)
        said += text
    assert (said, ended) == ("a\n  b\n ", True)


def test_the_first_line_and_empty_lines_may_begin_anywhere():
    assert watch(indent=4).text("x\n\n    y\n\t\t\t\tz", 100) == ("x\n\n    y\n\t\t\t\tz", False)
