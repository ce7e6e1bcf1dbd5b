"""Paths of images in a question, as terminals write a file that is dragged into them."""

from __future__ import annotations

import pytest

from server.cli.chat.dropped import dropped

THERE = frozenset({"/home/me/a.png", "/home/me/my cat.jpg", "~/b.WEBP", "./c.gif", "/home/me/it's.png"})


@pytest.mark.parametrize(
    ("line", "text", "paths"),
    [
        ("/home/me/a.png what is it?", "what is it?", ["/home/me/a.png"]),
        ("what is it? '/home/me/my cat.jpg' ", "what is it?", ["/home/me/my cat.jpg"]),
        (r"/home/me/my\ cat.jpg", "", ["/home/me/my cat.jpg"]),
        ("file:///home/me/my%20cat.jpg and ~/b.WEBP", "and", ["/home/me/my cat.jpg", "~/b.WEBP"]),
        ('compare "./c.gif" with /home/me/a.png', "compare with", ["./c.gif", "/home/me/a.png"]),
        (r"/home/me/it\'s.png", "", ["/home/me/it's.png"]),
        ("what is /home/me/gone.png?", "what is /home/me/gone.png?", []),
        ("read /etc/passwd", "read /etc/passwd", []),
        ("a.png is nice", "a.png is nice", []),
        ("say '/home/me/a.png'!", "say '/home/me/a.png'!", []),
        ("two  spaces\n  stay", "two  spaces\n  stay", []),
    ],
)
def test_images_are_taken_out_of_a_question(line: str, text: str, paths: list[str]) -> None:
    found = dropped(line, THERE.__contains__)
    assert (found.text.replace("  ", " ") if paths else found.text, found.paths) == (text, paths)
