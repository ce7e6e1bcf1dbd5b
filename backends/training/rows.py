"""The rows of a training file in memory, compactly, and the order in which they are learnt: pure arithmetic of a seed.

What is learnt in which step depends on the seed, the lengths and the effective batch alone, so a job that was stopped
goes on with the very rows that come next.
"""

from __future__ import annotations

import bisect
import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from backends.training.encoding import Row

_GROUPED_BATCHES: Final = 50
"""Rows are sorted by length within so many batches: little padding, and still another order in every epoch."""


@dataclass
class Rows:
    """Tokens one behind the other: 5 bytes each."""

    tokens: array[int] = field(default_factory=lambda: array("i"))
    learnt: array[int] = field(default_factory=lambda: array("b"))
    starts: array[int] = field(default_factory=lambda: array("q", [0]))
    n_cut: int = 0
    """Rows that have lost their ends."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, row: Row) -> None:
        """Append one."""
        self.tokens.extend(row.tokens)
        self.learnt.extend(row.learnt)
        self.starts.append(len(self.tokens))

    def take(self, indices: Sequence[int]) -> Rows:
        """Some of them."""
        taken = Rows()
        for i in indices:
            begin, end = self.starts[i], self.starts[i + 1]
            taken.tokens.extend(self.tokens[begin:end])
            taken.learnt.extend(self.learnt[begin:end])
            taken.starts.append(len(taken.tokens))
        return taken

    def n_learnt(self, i: int) -> int:
        """Tokens of a row that are foretold."""
        return self.learnt[self.starts[i] : self.starts[i + 1]].count(1)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """`(n,) int64`."""
        starts: NDArray[np.int64] = np.array(self.starts, dtype=np.int64)
        return starts[1:] - starts[:-1]

    @property
    def digest(self) -> str:
        """Of everything that is learnt."""
        found = hashlib.sha256()
        for part in (self.tokens, self.learnt, self.starts):
            found.update(part.tobytes())
        return found.hexdigest()

    def split(self, share: float, seed: int) -> tuple[Rows, Rows]:
        """Those to learn and those to evaluate with; at least one of either where there are two."""
        n_kept = min(max(round(len(self) * share), 1), len(self) - 1) if share > 0 else 0
        if n_kept < 1:
            return self, Rows()
        order = np.random.default_rng([seed, 0]).permutation(len(self))
        learn = self.take(sorted(order[n_kept:].tolist()))
        learn.n_cut = self.n_cut
        return learn, self.take(sorted(order[:n_kept].tolist()))


Unit = tuple[int, ...]
"""Rows that stand in one line of a batch; several where they are packed."""


class MicroBatch(NamedTuple):
    """What one forward pass takes."""

    tokens: NDArray[np.int64]
    """`(lines, length)`."""
    positions: NDArray[np.int64]
    """The same; begins anew where a packed row does."""
    learnt: NDArray[np.bool_]
    """The same."""
    n_tokens: int
    """Without padding."""

    @property
    def n_learnt(self) -> int:
        """Tokens that are foretold."""
        return int(self.learnt.sum())


def units(rows: Rows, *, packing: bool, max_length: int) -> list[Unit]:
    """The lines of batches: a row each, or as many as fit into `max_length`, the longest first (best fit)."""
    lengths = rows.lengths
    if not packing:
        return [(i,) for i in range(len(rows))]
    packed: list[list[int]] = []
    open_lines: list[tuple[int, int]] = []
    """Room left and number, sorted."""
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        at = bisect.bisect_left(open_lines, (length, -1))
        room, line = open_lines.pop(at) if at < len(open_lines) else (max_length, len(packed))
        if line == len(packed):
            packed.append([])
        packed[line].append(i)
        if room - length > 1:
            bisect.insort(open_lines, (room - length, line))
    return [tuple(line) for line in packed]


def order(lengths: NDArray[np.int64], *, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch (from 1), each of numbers of lines; a last one may have fewer."""
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(lengths.size)
    span = batch * _GROUPED_BATCHES
    batches: list[list[int]] = []
    for begin in range(0, lengths.size, span):
        group = shuffled[begin : begin + span]
        group = group[np.argsort(-lengths[group], kind="stable")]
        batches += [group[at : at + batch].tolist() for at in range(0, group.size, batch)]
    short = [one for one in batches if len(one) < batch]
    whole = [one for one in batches if len(one) == batch]
    return [whole[i] for i in rng.permutation(len(whole))] + short


def micro_batch(rows: Rows, lines: Sequence[Unit], *, pad: int) -> MicroBatch:
    """Lines side by side, padded behind: what stands behind a token changes nothing of it."""
    lengths = rows.lengths
    width = max(sum(int(lengths[i]) for i in line) for line in lines)
    tokens = np.full((len(lines), width), pad, dtype=np.int64)
    positions = np.zeros_like(tokens)
    learnt = np.zeros(tokens.shape, dtype=np.bool_)
    n_tokens = 0
    for n, line in enumerate(lines):
        at = 0
        for i in line:
            begin, end = rows.starts[i], rows.starts[i + 1]
            span = slice(at, at + end - begin)
            tokens[n, span] = rows.tokens[begin:end]
            learnt[n, span] = np.array(rows.learnt[begin:end], dtype=np.bool_)
            positions[n, span] = np.arange(end - begin)
            at += end - begin
        n_tokens += at
        # Padding behind a single row goes on with its positions, so that attention needs no mask of its own.
        positions[n, at:] = np.arange(width - at) + (at if len(line) == 1 else 0)
    return MicroBatch(tokens, positions, learnt, n_tokens)
