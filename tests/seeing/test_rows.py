"""Where media stand among a prompt's rows: between the tokens of their words, under keys of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from backends.engine import JobError
from backends.generation.media import Encoded, MediaShape
from backends.generation.tokenizer import Tokenizer
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.messages import ChatPrompt, MediaKind, MediaSegment, Medium, SegmentPrompt, TextSegment

pytestmark = pytest.mark.engine
ROWS, POSITIONS = 6, 2


class Tower:
    """Makes six rows of every image, which take two positions."""

    kinds: Sequence[MediaKind] = ("image",)
    leads = False

    def shapes(self, medium: Medium) -> Sequence[MediaShape | Sequence[int]]:
        return [[1], MediaShape(ROWS, POSITIONS, medium.digest), [2, 3]]

    def embed(self, medium: Medium) -> Encoded:
        raise JobError("internal_error", "nothing is computed of what is only counted")

    def close(self) -> None:
        """It holds nothing."""


def medium(data: bytes, kind: MediaKind = "image") -> Medium:
    return Medium(kind, data, hashlib.sha256(data).hexdigest(), f"{kind}/x")


@pytest.fixture(scope="module")
def tokenizer(canary_path: Path) -> Iterator[Tokenizer]:
    model = Model(canary_path, gpu_layers=0, log=LibraryLog())
    model.tower = Tower()
    yield Tokenizer(model)
    model.close()


def prompt(*content: str | int, media: Sequence[Medium]) -> ChatPrompt:
    parts = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "medium", "medium": part}
        for part in content
    ]
    return ChatPrompt([{"role": "user", "content": parts}], media=list(media))


def words(text: str) -> ChatPrompt:
    return ChatPrompt([{"role": "user", "content": text}])


def test_rows_of_a_medium_stand_where_the_medium_stood(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(prompt("ab", 0, "cd", media=[medium(b"a")]))
    [rows] = encoded.layout.media
    before, after = encoded.tokens[: rows.first], encoded.tokens[rows.end :]
    assert (before[-1], after[:2]) == (1, [2, 3])
    assert before[:-1] + after[2:] == tokenizer.encode(words("ab\n\ncd")).tokens
    positions = encoded.layout.positions(0, len(encoded.tokens))
    assert positions[-1] == len(encoded.tokens) - 1 - (ROWS - POSITIONS)
    assert encoded.thinking == tokenizer.encode(words("ab")).thinking


def test_two_pictures_behind_the_same_words_share_nothing(tokenizer: Tokenizer) -> None:
    made = [tokenizer.encode(prompt("a", 0, "b", 0, "c", media=[medium(data)])) for data in (b"one", b"two", b"one")]
    keys = [one.layout.keys(np.array(one.tokens, np.int32)).tolist() for one in made]
    first, second = made[0].layout.media
    assert made[0].tokens == made[1].tokens
    assert keys[0] == keys[2]
    assert keys[0][: first.first] == keys[1][: first.first]
    assert not {*keys[0][first.first : first.end]} & {*keys[1]}
    assert keys[0][first.first : first.end] == keys[0][second.first : second.end]


def test_a_character_of_a_place_in_a_text_is_a_character(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(prompt("\U00100000", 0, "a", media=[medium(b"a")]))
    plain = tokenizer.encode(words("\U00100000\n")).tokens
    assert len(encoded.layout.media) == 1
    assert encoded.tokens[: encoded.layout.media[0].first - 1] == plain[: encoded.layout.media[0].first - 1]


def test_segments_are_the_same_rows(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(SegmentPrompt([TextSegment("ab"), MediaSegment(medium(b"a")), TextSegment("c")]))
    assert [rows.n_rows for rows in encoded.layout.media] == [ROWS]


def test_a_template_that_leaves_a_medium_out_is_told(canary_path: Path) -> None:
    class Silent(Model):
        def chat_template(self, name: str | None = None) -> str | None:
            return "{% for m in messages %}{{ m['role'] }}{% endfor %}" if name is None else None

    model = Silent(canary_path, gpu_layers=0, log=LibraryLog())
    model.tower = Tower()
    with pytest.raises(JobError, match="leaves out an image"):
        Tokenizer(model).encode(prompt("a", 0, media=[medium(b"a")]))
    model.close()


@pytest.mark.parametrize("tower", [None, Tower()], ids=["reads text", "sees"])
def test_what_a_model_does_not_read_is_refused_by_name(canary_path: Path, tower: Tower | None) -> None:
    model = Model(canary_path, gpu_layers=0, log=LibraryLog())
    model.tower = tower
    reads = "text alone" if tower is None else "text and image"
    with pytest.raises(JobError, match=f"reads {reads}, and takes no sounds") as caught:
        Tokenizer(model).encode(prompt(0, "a", media=[medium(b"a", "audio")]))
    assert caught.value.code == "unsupported_media"
    model.close()
