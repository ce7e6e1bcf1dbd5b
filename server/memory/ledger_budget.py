"""The scheduler's books over the real ledger and estimates; see `server.memory.budget`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.memory.placement import Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.pool.loader import Loader
    from server.settings.catalog import CatalogEntry


class LedgerBudget:
    """Instant answers; what a model needs is kept until something about it changes."""

    def __init__(self, entries: Mapping[str, CatalogEntry]) -> None:
        self.loader: Loader | None = None
        self._entries = entries
        self._needs: dict[tuple[str, int], tuple[tuple[int, int], int | Refused]] = {}

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return self.loader.memory.ledger.free_bytes if self.loader else 0

    @property
    def over_bytes(self) -> int:
        """How much models hold above the budget."""
        return self.loader.memory.ledger.over_bytes if self.loader else 0

    def held_bytes(self, model: str) -> int:
        """What leaves with the model."""
        booking = self.loader.memory.ledger.booking(model) if self.loader else None
        return booking.booked_bytes if booking is not None else 0

    def usable_bytes(self, model: str) -> int:
        """What the model can have when all leave who may: the budget without what pinned models hold."""
        if self.loader is None:
            return 0
        pinned = (name for name, entry in self._entries.items() if entry.config.pinned and name != model)
        return max(0, self.loader.memory.ledger.budget_bytes - sum(self.held_bytes(name) for name in pinned))

    def need_bytes(self, model: str, *, smaller_by: int) -> int | Refused:
        """What a load would book, or why it never can."""
        if self.loader is None:
            return 0
        usable = self.usable_bytes(model)
        state = (usable, self.loader.estimator.prices.version)
        known = self._needs.get((model, smaller_by))
        if known is not None and known[0] == state:
            return known[1]
        placed = self.loader.quote(self._entries[model], usable_bytes=usable, smaller_by=smaller_by)
        need = 0 if placed is None else placed if isinstance(placed, Refused) else placed.footprint.total_bytes
        self._needs[model, smaller_by] = (state, need)
        return need

    def forget(self, model: str) -> None:
        """The model's file or what is known of it has changed."""
        for key in [key for key in self._needs if key[0] == model]:
            del self._needs[key]
