"""The pass that is computed now: which of its rows have which adapter, and what joined layers have made of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.pytorch.joined import JoinedLayers


@dataclass(frozen=True, eq=False)
class Columns:
    """Of a stack's matrices for some layers; layers that are cut alike have the same object, and share their masks."""

    stack: int
    owners: torch.Tensor
    """`(columns,) int64`: the adapter that each belongs to."""


@dataclass
class LoraPass:
    """Which rows of one pass have an adapter; made anew for each."""

    adapters: torch.Tensor
    """`(n,) int64`; -1: the base alone."""
    rows: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """By stack, the rows that one of its adapters has; None: so many that all are computed, others with a mask of
    zeros. A stack without rows is not there."""
    _masks: dict[tuple[Columns, bool], torch.Tensor] = field(default_factory=dict)

    def check(self, n_rows: int) -> None:
        """Raises RuntimeError for a layer that gets other rows than those of the pass."""
        if n_rows != self.adapters.shape[0]:
            raise RuntimeError(f"a layer with an adapter gets {n_rows} rows of {self.adapters.shape[0]}")

    def mask(self, columns: Columns, dtype: torch.dtype, *, of_all: bool = False) -> torch.Tensor:
        """`(rows of the stack, or all, columns)`: 1 where a column is of the row's adapter."""
        rows = None if of_all else self.rows[columns.stack]
        found = self._masks.get((columns, rows is None))
        if found is None:
            adapters = self.adapters if rows is None else self.adapters[rows]
            found = (adapters[:, None] == columns.owners[None, :]).to(dtype)
            self._masks[columns, rows is None] = found
        return found


@dataclass
class _Made:
    """What one group of joined layers has made of an input; it is let go with the last of them."""

    joined: JoinedLayers
    x: torch.Tensor
    outputs: Sequence[torch.Tensor]
    n_left: int
    """Layers that have not taken theirs."""


class Current:
    """All layers with adapters look here. Holds what one group of joined layers has made: the next may share it."""

    def __init__(self) -> None:
        self.of_rows: LoraPass | None = None
        self.of_outputs: LoraPass | None = None
        """The same of those rows that reach the head."""
        self._made: _Made | None = None

    def choose(self, of_rows: LoraPass | None, of_outputs: LoraPass | None) -> None:
        """Another pass begins, or none: nothing of the last one is kept."""
        self.of_rows, self.of_outputs, self._made = of_rows, of_outputs, None

    def output(self, joined: JoinedLayers, columns: Columns, place: int, x: torch.Tensor) -> torch.Tensor:
        """Of one of the layers, `(..., out)`. Raises RuntimeError."""
        made = self._made
        if made is None or made.joined is not joined or made.x is not x:
            made = _Made(joined, x, joined.outputs(x, self._mask(columns, x)), len(joined.sizes))
        made.n_left -= 1
        self._made = made if made.n_left else None
        return made.outputs[place]

    def _mask(self, columns: Columns, x: torch.Tensor) -> torch.Tensor | None:
        """`(rows, columns)`; None where no row has one of these adapters. Raises RuntimeError."""
        now = self.of_rows
        if now is None:
            return None
        now.check(x.numel() // x.shape[-1])
        return now.mask(columns, x.dtype, of_all=True) if columns.stack in now.rows else None


class JoinedLinear(torch.nn.Module):
    """One of some joined layers, in its place in the model."""

    def __init__(self, joined: JoinedLayers, columns: Columns, place: int, current: Current) -> None:
        super().__init__()
        self.in_features, self.out_features = joined.in_features, joined.sizes[place]
        self.joined, self.place = joined, place
        self._columns, self._current = columns, current

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(..., in) -> (..., out)`."""
        return self._current.output(self.joined, self._columns, self.place, x)
