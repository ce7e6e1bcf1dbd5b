"""Who holds how many cells of a KV pool, cells that several sequences share counted once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

H = TypeVar("H")


@dataclass
class _Share(Generic[H]):
    n_cells: int
    """Positions of the sequence."""
    source: H | None = None
    """Whose first cells it uses too."""
    n_shared: int = 0


class Cells(Generic[H]):
    """Counts what llama.cpp takes of a unified pool of `total` cells; a holder is anything that can be a key."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._held: dict[H, _Share[H]] = {}

    @property
    def free(self) -> int:
        """Cells that are not in use."""
        return self.total - self.used

    def grow(self, holder: H, n_cells: int) -> None:
        """A sequence has so many positions more."""
        held = self._held.get(holder)
        if held is None:
            held = self._held[holder] = _Share(0)
        held.n_cells += n_cells
        self.used += n_cells

    def share(self, source: H, target: H, n_cells: int) -> None:
        """A new sequence begins with the first cells of another."""
        self._held[target] = _Share(n_cells, source, n_cells)

    def drop(self, holder: H) -> None:
        """A sequence is gone; what others share with it stays, and the one that shares most stands in for it."""
        gone = self._held.pop(holder, None)
        if gone is None:
            return
        self.used -= gone.n_cells - gone.n_shared
        heirs = sorted(
            ((other.n_shared, name) for name, other in self._held.items() if other.source == holder),
            key=lambda pair: -pair[0],
        )
        if not heirs:
            return
        most, first = heirs[0]
        kept = self._held[first]
        kept.source, kept.n_shared = gone.source, min(most, gone.n_shared)
        self.used += most - kept.n_shared
        for _, name in heirs[1:]:
            self._held[name].source = first
