"""The keys and values of one model: a row of cells per sequence and layer, within a budget that never grows.

Where the budget covers every row, all cells are taken at load; a smaller one is handed out as rows grow. Layers with a
sliding window keep a ring of the window and one pass. Decides nothing about who gets room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from backends.bnb.arithmetic import GROWTH, pool_rows, ring_cells
from backends.messages.plans import whole_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One attention layer's cache."""

    n_heads: int
    key_size: int
    value_size: int
    window: int | None = None
    """Positions a token sees, itself counted; None sees all before it."""


class LayerCache:
    """One layer: `keys[row]` and `values[row]` are `(n_heads, cells, size)`."""

    def __init__(self, shape: LayerShape, *, ring: int, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.window = shape.window
        self.ring = ring
        """Cells at most; position p lies in cell `p % ring`."""
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.all_keys: torch.Tensor | None = None
        """`(rows, n_heads, cells, key_size)` where all rows were taken at once."""
        self.all_values: torch.Tensor | None = None
        self._dtype = dtype
        self._device = device

    def take_all(self, n_rows: int, cells: int) -> None:
        """Take every row's cells now; zeroed, so that they are really there."""
        self.all_keys, self.all_values = self._new(n_rows, min(cells, self.ring))
        self.keys, self.values = list(self.all_keys), list(self.all_values)

    def take_none(self, n_rows: int) -> None:
        """Rows without cells."""
        keys, values = self._new(n_rows, 0)
        self.keys, self.values = list(keys), list(values)

    def resize(self, row: int, cells: int) -> None:
        """Give a row so many cells; the first ones keep what they hold."""
        cells = min(cells, self.ring)
        if cells == self.keys[row].shape[1]:
            return
        keys, values = self._new(1, cells)
        n_kept = min(cells, self.keys[row].shape[1])
        keys[0, :, :n_kept] = self.keys[row][:, :n_kept]
        values[0, :, :n_kept] = self.values[row][:, :n_kept]
        self.keys[row], self.values[row] = keys[0], values[0]

    def copy(self, source: int, target: int, length: int, *, source_length: int) -> None:
        """Begin a row with the first positions of another, which has `source_length` of them."""
        turned = source_length > self.ring  # its cells are in no order
        n_cells = self.ring if turned else min(length, self.ring)
        self.keys[target][:, :n_cells] = self.keys[source][:, :n_cells]
        self.values[target][:, :n_cells] = self.values[source][:, :n_cells]

    def _new(self, n_rows: int, cells: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = self.shape
        keys, values = (
            torch.zeros((n_rows, shape.n_heads, cells, size), dtype=self._dtype, device=self._device)
            for size in (shape.key_size, shape.value_size)
        )
        return keys, values


class KvCache:
    """All layers, and how many of the budgeted cells each row holds."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        *,
        n_rows: int,
        context: int,
        budget_cells: int,
        pass_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.n_rows = n_rows
        self._dtype = dtype
        self.cells_each = whole_blocks(context)
        self.budget_cells = budget_cells
        self.fixed = self.budget_cells == n_rows * self.cells_each
        """Every row has all its cells for good."""
        self._held = [0] * n_rows
        """Positions each row is good for, of those that are handed out."""
        self._cells = [self.cells_each if self.fixed else 0] * n_rows
        """Cells each row has: what it holds in whole blocks."""
        self.layers = [
            LayerCache(shape, ring=ring_cells(shape.window, self.cells_each, pass_tokens), dtype=dtype, device=device)
            for shape in shapes
        ]
        for layer in self.layers:
            if self.fixed:
                layer.take_all(n_rows, self.cells_each)
            else:
                layer.take_none(n_rows)

    @property
    def n_bytes(self) -> int:
        """What the whole budget takes: rows that are not grown yet count too."""
        size = self._dtype.itemsize
        rows = self.n_rows if self.fixed else pool_rows(self.budget_cells, self.cells_each, self.n_rows)
        return round(
            sum(
                rows * layer.shape.n_heads * (layer.shape.key_size + layer.shape.value_size) * layer.ring * size
                for layer in self.layers
            )
        )

    def grow(self, row: int, length: int) -> bool:
        """Let a row hold so many positions; False where the budget has no room for it.

        Raises what PyTorch raises where there is no memory; the row holds what it held.
        """
        if self.fixed:
            return True
        if sum(self._held) - self._held[row] + length > self.budget_cells:
            return False
        if length > self._cells[row]:
            self._resize(row, min(-(-length // GROWTH) * GROWTH, self.cells_each))
        self._held[row] = max(self._held[row], length)
        return True

    def shrink(self, row: int, length: int) -> None:
        """Let a row hold no more than so many positions; what lies behind them is lost."""
        if not self.fixed:
            self._held[row] = min(self._held[row], length)
            if length == 0:  # some layers may have grown when others found no memory
                self._resize(row, 0)

    def _resize(self, row: int, cells: int) -> None:
        for layer in self.layers:
            layer.resize(row, cells)
        self._cells[row] = cells

    def least(self, length: int) -> int:
        """What a row of so many positions can be cut to: rings have forgotten what lies behind them."""
        return max(
            (
                length - layer.ring + layer.window
                for layer in self.layers
                if layer.window is not None and length > layer.ring
            ),
            default=0,
        )

    @property
    def forgets(self) -> bool:
        """Some layers keep less than a row's context."""
        return any(layer.ring < self.cells_each for layer in self.layers)

    def parts(self, row: int, length: int, *, windowed_only: bool = False) -> list[torch.Tensor]:
        """The cells that hold a row's positions, keys and values of every layer in turn, as views."""
        found = []
        for layer in self.layers:
            if windowed_only and layer.window is None:
                continue
            n_cells = min(length, layer.ring)
            found += [layer.keys[row][:, :n_cells], layer.values[row][:, :n_cells]]
        return found

    def copy(self, source: int, target: int, length: int, *, source_length: int) -> None:
        """Begin `target`, which has the cells for it, with the first positions of `source`; see `least`."""
        for layer in self.layers:
            layer.copy(source, target, length, source_length=source_length)
