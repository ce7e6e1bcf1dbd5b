"""Rows of images that wait for the batch they are computed with: tokens and images share one flat pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.generation.row_layout import Embedding


class Waiting(NamedTuple):
    """Some rows of one sequence."""

    slot: int
    rows: NDArray[np.float32]
    """`(n, n_embd) float32`."""
    positions: NDArray[np.int32]
    """`(n_sections, n) int32`."""
    whole: bool
    """They see each other."""


class JoinedRows:
    """See `backends.generation.decoder.EmbeddingPass`."""

    joins = True

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []

    def decode(self, embedding: Embedding, first: int, count: int, *, slot: int, position: int) -> int:
        """See `EmbeddingPass`: they are computed with the next batch, whose status is theirs."""
        rows = embedding.rows[first : first + count]
        self._waiting.append(Waiting(slot, rows, embedding.positions(position, first, count), embedding.alone))
        return 0

    def take(self) -> list[Waiting]:
        """What waits for this batch."""
        waiting, self._waiting = self._waiting, []
        return waiting


class BatchImages:
    """The image rows of one batch, which stand behind its tokens."""

    def __init__(self, waiting: Sequence[Waiting], n_tokens: int) -> None:
        self.n_rows = sum(one.rows.shape[0] for one in waiting)
        self._n_tokens = n_tokens
        self._rows = np.concatenate([one.rows for one in waiting]) if waiting else None
        self._sections = max((one.positions.shape[0] for one in waiting), default=1)
        self._waiting = waiting
        self.whole: dict[int, int] = {}
        """Batch rows where an image begins whose rows see each other, and those where it ends."""

    def write(self, positions: NDArray[np.int32], sequences: NDArray[np.int32], outputs: NDArray[np.int8]) -> None:
        """Write where the rows belong behind the tokens of a batch."""
        at = self._n_tokens
        for one in self._waiting:
            end = at + one.rows.shape[0]
            sequences[at:end], outputs[at:end], positions[at:end] = one.slot, 0, one.positions[0]
            if one.whole:
                self.whole[at] = end
            at = end

    def of(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float32]] | None:
        """Of the batch's rows that a pass computes: which are images, `(n,) int64`, and what they hold."""
        places = np.flatnonzero(rows >= self._n_tokens)
        if self._rows is None or not places.size:
            return None
        return places, self._rows[rows[places] - self._n_tokens]

    def positions(self, rows: NDArray[np.intp], positions: NDArray[np.int32]) -> NDArray[np.int32]:
        """`(n,) int32` of those rows of a batch, or `(n_sections, n)` where some image has more than one section."""
        if self._sections == 1:
            return positions[rows]
        places = np.flatnonzero(rows >= self._n_tokens)
        found = np.repeat(positions[rows][None], self._sections, axis=0)
        if places.size:
            every = np.concatenate([self._as_sections(one.positions) for one in self._waiting], axis=1)
            found[:, places] = every[:, rows[places] - self._n_tokens]
        return found

    def _as_sections(self, positions: NDArray[np.int32]) -> NDArray[np.int32]:
        return np.broadcast_to(positions, (self._sections, positions.shape[1]))


NO_IMAGES = BatchImages((), 0)
