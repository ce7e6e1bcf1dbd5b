"""Texts in pieces, and voices known by their content: pure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from backends.backend import HeaderError
from backends.registry import recognised
from backends.voice import onnx
from backends.voice.header import read
from backends.voice.reading import MOST_CHARS, pieces


def test_sentences() -> None:
    text = 'Dr. Smith met J. K. Rowling. "Well!" she said, and left... it was late.\n\nA new line\nand another'
    assert pieces(text) == [
        "Dr. Smith met J. K. Rowling.",
        '"Well!" she said, and left... it was late.',
        "A new line",
        "and another",
    ]


def test_no_piece_is_long_and_no_word_is_lost() -> None:
    chance = random.Random(5)
    words = [
        chance.choice(("on", "other", "elsewhere,", "x" * 90, "1" * 30, "so;", "end.", "\u00e9t\u00e9"))
        for _ in range(900)
    ]
    found = pieces(" ".join(words))
    assert max(map(len, found)) <= MOST_CHARS
    assert "".join("".join(found).split()) == "".join(words)


def test_what_cannot_be_said_is_no_piece() -> None:
    assert pieces("... --- !!!\n\n;") == []
    assert pieces("12345678901234567890") == ["1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0"]


def field(number: int, data: bytes) -> bytes:
    size, rest = bytearray(), len(data)
    while rest > 127:
        size.append(rest & 127 | 128)
        rest >>= 7
    return bytes([number << 3 | 2]) + bytes([*size, rest]) + data


def model(inputs: tuple[str, ...] = ("ids", "speed"), n_outputs: int = 6, weight: bytes = bytes(1000)) -> bytes:
    graph = field(5, field(9, weight))
    graph += b"".join(field(11, field(1, name.encode())) for name in inputs)
    graph += b"".join(field(12, field(1, b"out")) for _ in range(n_outputs))
    return b"\x08\x08" + field(2, b"tests") + field(7, graph)


def test_a_voice_is_known_by_what_goes_in_and_comes_out(tmp_path: Path) -> None:
    (tmp_path / "anna.onnx").write_bytes(model())
    (tmp_path / "other.onnx").write_bytes(model(("pixels",)))
    for path in (tmp_path, tmp_path / "anna.onnx"):
        found = recognised(path)
        assert found is not None
        assert (found[0].name, [file.name for file in found[1].weights]) == ("voice", ["anna.onnx"])
        assert read(path).names == ["anna"]
        assert 1000 < read(path).voices[0].weight_bytes < 1100
    assert recognised(tmp_path / "other.onnx") is None
    (tmp_path / "config.json").write_text("{}")
    told = recognised(tmp_path)
    assert told is None or told[0].name != "voice"


BROKEN = {
    "empty": b"",
    "text": b"hello there" * 10,
    "cut": model()[:500],
    "a size that lies": b"\x08\x08\x3a\xff\xff\xff\xff\x0f",
    "a number without end": b"\xff" * 40,
    "groups": b"\x0b" * 10,
    "weights elsewhere": model(weight=b"\x0a\x08location\x12\x0b/etc/passwd"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_are_none_are_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(HeaderError):
        onnx.read(BROKEN[case])
    (tmp_path / "a.onnx").write_bytes(BROKEN[case])
    assert recognised(tmp_path / "a.onnx") is None


def test_damaged_outlines_never_do_worse_than_being_refused() -> None:
    chance, whole = random.Random(3), model()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            onnx.read(bytes(data[: chance.randrange(1, len(data))]))
        except HeaderError:
            continue
