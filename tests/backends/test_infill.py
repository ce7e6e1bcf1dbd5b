"""The order of a fill-in-the-middle prompt, and which files go when there is no room."""

from __future__ import annotations

from backends.messages import FimFile, FimPrompt
from backends.prompts.fim import InfillMarks, encode

MARKS = InfillMarks(prefix=1000, suffix=1001, middle=1002, repository=1003, file=1004)
FILES = [FimFile("a.py", "aa"), FimFile("b.py", "bbbb")]


def ids(text: str) -> list[int]:
    return list(text.encode())


def read(tokens: list[int]) -> str:
    names = {1000: "<PRE>", 1001: "<SUF>", 1002: "<MID>", 1003: "<REPO>", 1004: "<FILE>", 1: "<BOS>"}
    return "".join(names.get(token) or chr(token) for token in tokens)


def test_prefix_and_suffix_stand_before_the_middle():
    tokens, omitted = encode(FimPrompt("x(", ")"), MARKS, ids, opening=[1], room=100)

    assert (read(tokens), omitted) == ("<BOS><PRE>x(<SUF>)<MID>", 0)


def test_files_come_first_under_their_names():
    tokens, omitted = encode(FimPrompt("x", "y", FILES), MARKS, ids, opening=[1], room=200)

    written = "<REPO>myproject\n<FILE>a.py\naa<FILE>b.py\nbbbb<FILE>filename\n"
    assert (read(tokens), omitted) == (f"<BOS>{written}<PRE>x<SUF>y<MID>", 0)


def test_without_marks_for_files_a_line_of_text_separates_them():
    marks = InfillMarks(prefix=1000, suffix=1001, middle=1002)

    tokens, _ = encode(FimPrompt("x", "y", FILES), marks, ids, opening=[], room=200)

    assert read(tokens) == "\n\n--- snippet ---\n\naa\n\n--- snippet ---\n\nbbbb<PRE>x<SUF>y<MID>"


def test_the_first_files_go_when_there_is_no_room():
    whole, _ = encode(FimPrompt("x", "y", FILES), MARKS, ids, opening=[], room=200)

    for room in range(len(whole) + 1):
        tokens, omitted = encode(FimPrompt("x", "y", FILES), MARKS, ids, opening=[], room=room)
        assert len(tokens) <= room or omitted == 2
        assert ("bbbb" in read(tokens)) == (omitted < 2)
        assert ("aa" in read(tokens)) == (omitted < 1)
    assert read(encode(FimPrompt("x", "y", FILES), MARKS, ids, opening=[], room=0)[0]) == "<PRE>x<SUF>y<MID>"
