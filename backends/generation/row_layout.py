"""Which rows of a prompt are tokens and which are a medium's: their keys, their positions, where they may be cut. Pure.

A row takes one KV cell. A row of text takes one position too; the rows of an image may share positions, so that cells
and positions are counted apart. A medium is computed in one piece, and a prefix ends before or behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.prefix.keys import media_keys, text_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.prefix.keys import Keys


@dataclass(frozen=True)
class MediaRows:
    """The rows of one image or sound in a prompt."""

    first: int
    n_rows: int
    n_positions: int
    digest: str

    @property
    def end(self) -> int:
        """The row behind it."""
        return self.first + self.n_rows


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

    def cut(self, n_rows: int) -> int:
        """The longest prefix of at most so many rows that does not end inside a medium."""
        return next((medium.first for medium in self.media if medium.first < n_rows < medium.end), n_rows)


TEXT_ALONE: Final = RowLayout()
