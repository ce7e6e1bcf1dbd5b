"""Prompts with media: keys that tell pictures apart, positions apart from cells, and cuts beside media only."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.generation.row_layout import TEXT_ALONE, MediaRows, RowLayout
from backends.prefix.index import PrefixIndex
from backends.prefix.keys import media_keys, text_keys

PLACEHOLDER = 7


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def prompt(*segments: int | tuple[str, int, int]) -> tuple[np.ndarray, RowLayout]:
    """So many tokens, or a medium of a name with rows and positions; every row's token is the placeholder's."""
    n, media = 0, []
    for segment in segments:
        if isinstance(segment, int):
            n += segment
        else:
            name, n_rows, n_positions = segment
            media.append(MediaRows(n, n_rows, n_positions, digest(name)))
            n += n_rows
    return np.full(n, PLACEHOLDER, np.int32), RowLayout(tuple(media))


@st.composite
def prompts(draw: st.DrawFn) -> tuple[np.ndarray, RowLayout]:
    medium = st.tuples(st.sampled_from("abc"), st.integers(1, 12)).flatmap(
        lambda one: st.tuples(st.just(one[0]), st.just(one[1]), st.integers(1, one[1]))
    )
    return prompt(*draw(st.lists(st.integers(1, 9) | medium, min_size=1, max_size=8)))


@pytest.mark.parametrize(
    ("other", "n_shared"),
    [
        ((20, ("cat", 30, 8), 10), 60),
        ((20, ("cat", 30, 8), 4), 54),
        ((20, ("dog", 30, 8), 10), 20),
        ((20, ("cat", 31, 8), 10), 50),
        ((21, ("cat", 30, 8), 10), 20),
        ((60,), 20),
    ],
)
def test_pictures_behind_equal_placeholders_share_nothing(other: tuple, n_shared: int) -> None:
    index: PrefixIndex[str] = PrefixIndex()
    tokens, layout = prompt(20, ("cat", 30, 8), 10)
    index.add("cat", layout.keys(tokens))

    theirs, their_layout = prompt(*other)
    (match,) = index.matches(their_layout.keys(theirs))

    assert match.n_tokens == n_shared


def test_a_prefix_of_one_picture_is_no_prefix_of_another_at_any_offset() -> None:
    rows = {name: media_keys(digest(name), 4096) for name in ("cat", "dog")}
    assert len(set(rows["cat"].tolist()) | set(rows["dog"].tolist())) == 2 * 4096
    assert max(keys.max() for keys in rows.values()) < 0
    assert np.array_equal(media_keys(digest("cat"), 10), rows["cat"][:10])


@given(prompts())
def test_positions_count_what_keys_do_not(made: tuple[np.ndarray, RowLayout]) -> None:
    tokens, layout = made
    whole = layout.positions(0, tokens.size)

    assert whole[0] == 0
    assert set(np.diff(whole).tolist()) <= {0, 1, *(medium.n_positions for medium in layout.media)}
    saved = sum(medium.n_rows - medium.n_positions for medium in layout.media)
    assert layout.positions(tokens.size, 1)[0] == tokens.size - saved == tokens.size - layout.n_saved
    for first in range(tokens.size):
        assert np.array_equal(layout.positions(first, tokens.size - first), whole[first:])


@given(prompts(), st.integers(0, 100))
def test_a_cut_is_beside_a_medium(made: tuple[np.ndarray, RowLayout], at: int) -> None:
    _, layout = made
    cut = layout.cut(at)

    assert cut <= at
    assert not any(medium.first < cut < medium.end for medium in layout.media)
    assert cut == at or any(medium.first == cut < at < medium.end for medium in layout.media)


def test_text_alone_is_its_tokens() -> None:
    tokens = np.arange(5, dtype=np.int32)
    assert np.array_equal(TEXT_ALONE.keys(tokens), text_keys(tokens))
    assert TEXT_ALONE.positions(3, 2).tolist() == [3, 4]
    assert (TEXT_ALONE.n_saved, TEXT_ALONE.cut(4)) == (0, 4)
