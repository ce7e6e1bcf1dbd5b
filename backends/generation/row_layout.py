"""Which rows of a prompt are tokens and which are a medium's: their keys, their positions, where they may be cut. Pure.

A row takes one KV cell. A row of text takes one position too; the rows of an image may share positions, so that cells
and positions are counted apart. A step computes tokens or rows of a medium, and a prefix ends before or behind one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from backends.prefix.keys import media_keys, text_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.messages import Medium
    from backends.prefix.keys import Keys


class Place(NamedTuple):
    """Where rows come from: a medium, and which of its tiles."""

    medium: Medium
    tile: int
    number: int
    """Of the medium in its prompt, from 1 on."""


class Embedding(NamedTuple):
    """What an encoder made of a medium, or of one tile of it."""

    rows: NDArray[np.float32]
    """`(n_rows, n_embd) float32`."""
    offsets: NDArray[np.int32]
    """`(n_sections, n_rows) int32`: what a row's position adds to `slopes` times the first one's. One section, or the
    four of M-RoPE (time, y, x, and one more).
    """
    slopes: NDArray[np.int32]
    """`(n_sections, n_rows) int32`: 1 where positions count from the medium's first one, 0 where they are absolute."""
    alone: bool = False
    """Its rows see each other, so that they are computed in one pass with no others in it."""

    def positions(self, at: int, first: int, count: int) -> NDArray[np.int32]:
        """`(n_sections, count) int32`, of so many rows from `first` on, where the medium stands at position `at`."""
        part = slice(first, first + count)
        found: NDArray[np.int32] = self.offsets[:, part] + at * self.slopes[:, part]
        return found

    @property
    def n_bytes(self) -> int:
        """In host memory."""
        return self.rows.nbytes + self.offsets.nbytes + self.slopes.nbytes


@dataclass(frozen=True)
class MediaRows:
    """The rows of one image or sound in a prompt, or of one tile of it."""

    first: int
    n_rows: int
    n_positions: int
    digest: str
    place: Place | None = field(default=None, compare=False, repr=False)
    embedding: Embedding | None = field(default=None, compare=False, repr=False)
    """Not there until the prompt is known to fit."""

    @property
    def end(self) -> int:
        """The row behind it."""
        return self.first + self.n_rows


_NO_END: Final = 1 << 62


@dataclass(frozen=True)
class RowLayout:
    """Of one prompt; its media are in order and do not overlap. What follows the prompt is text."""

    media: tuple[MediaRows, ...] = ()

    def keys(self, tokens: NDArray[np.int32]) -> Keys:
        """What the rows are found by; `tokens` holds anything in rows of media."""
        keys = text_keys(tokens)
        for medium in self.media:
            keys[medium.first : medium.end] = media_keys(medium.digest, medium.n_rows)[
                : max(0, keys.size - medium.first)
            ]
        return keys

    @cached_property
    def n_saved(self) -> int:
        """How many cells the whole prompt takes beyond its positions."""
        return sum(medium.n_rows - medium.n_positions for medium in self.media)

    def positions(self, first: int, count: int) -> NDArray[np.int32]:
        """Of so many rows from `first` on. Rows of a medium have its first position; its encoder knows the rest."""
        rows = np.arange(first, first + count, dtype=np.int32)
        if not self.media:
            return rows
        positions = rows.copy()
        for medium in self.media:
            inside = (rows >= medium.first) & (rows < medium.end)
            positions[inside] -= rows[inside] - medium.first
            positions[rows >= medium.end] -= medium.n_rows - medium.n_positions
        return positions

    def position(self, row: int) -> int:
        """Of one row: as many positions as a prefix of so many rows takes, where it ends outside media."""
        return row if not self.media else int(self.positions(row, 1)[0])

    def at(self, row: int) -> MediaRows | None:
        """The medium that a row is of; None where it is text."""
        return next((medium for medium in self.media if medium.first <= row < medium.end), None)

    def run(self, row: int) -> int:
        """Behind which row a row's medium ends, or the text that it is in; text behind all media has no end here."""
        ends = (border for medium in self.media for border in (medium.first, medium.end) if border > row)
        return next(ends, _NO_END)

    def words(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """The tokens of text alone."""
        kept = np.ones(tokens.size, dtype=bool)
        for medium in self.media:
            kept[medium.first : medium.end] = False
        return tokens[kept]

    def cut(self, n_rows: int) -> int:
        """The longest prefix of at most so many rows that does not end inside a medium."""
        return next((medium.first for medium in self.media if medium.first < n_rows < medium.end), n_rows)


TEXT_ALONE: Final = RowLayout()
