"""Models that come, change and go while the pool runs, as another configuration has them.

What runs is never cut: a changed model is loaded anew once its jobs have ended, a removed one serves what it has
accepted and is then forgotten everywhere. For the event loop's thread only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.pool.limits import model_rules
from server.pool.resident import NO_LONGER, Resident

if TYPE_CHECKING:
    from server.pool.moves import Moves
    from server.pool.parts import PoolParts
    from server.settings.catalog import CatalogChange, CatalogEntry


class Changes:
    """See the module's text."""

    def __init__(self, parts: PoolParts, moves: Moves) -> None:
        self._parts = parts
        self._moves = moves

    def take(self, change: CatalogChange) -> list[Resident]:
        """Do what the catalogue has become; the models whose files have to be looked at."""
        for entry in change.removed:
            self._parts.tell("removing", model=entry.name, reason=NO_LONGER.format(entry.name))
            self._parts.perform(self._parts.scheduler.retire(entry.name, self._parts.clock()))
        fresh = [self._add(entry) for entry in change.added]
        for entry in change.changed:
            keys, reload = change.keys[entry.name], entry.name in change.reloads
            self._parts.tell("changed", model=entry.name, keys=",".join(keys), reload=reload)
            self._change(self._parts.residents[entry.name], reload=reload)
            if reload:
                fresh.append(self._parts.residents[entry.name])
        return fresh

    def pin(self, resident: Resident, *, pinned: bool) -> None:
        """Whether a model may leave, until the configuration is read again."""
        if resident.entry.config.pinned == pinned:
            return
        resident.entry.config = resident.entry.config.model_copy(update={"pinned": pinned})
        self._parts.tell("pinned" if pinned else "unpinned", model=resident.name, reason="manual")
        self._change(resident, reload=False)

    def forget(self, name: str) -> None:
        """A model is no more; its worker is gone, and nothing of it is left in the ledger."""
        parts = self._parts
        resident = parts.residents.pop(name)
        parts.budget.drop(name)
        if parts.loader is not None:
            parts.memory.forget(name)
        parts.metrics.remove(name)
        parts.tell("removed", model=name)
        resident.tell_gone("model_not_found", NO_LONGER.format(name))

    def _add(self, entry: CatalogEntry) -> Resident:
        """A model more. One that is about to go under this name stays, as it is configured now."""
        parts = self._parts
        parts.tell("added", model=entry.name)
        if (before := parts.residents.get(entry.name)) is not None:
            before.entry = entry
            self._change(before, reload=True)
            return before
        parts.metrics.add(entry.name)
        resident = parts.residents[entry.name] = Resident(entry, parts.metrics.model(entry.name))
        parts.budget.put(entry)
        parts.scheduler.add(model_rules(entry))
        return resident

    def _change(self, resident: Resident, *, reload: bool) -> None:
        parts = self._parts
        if reload:
            resident.ready, resident.tried_key = None, None
            parts.budget.put(resident.entry)
        else:
            parts.budget.forget(resident.name)
        parts.perform(parts.scheduler.change(model_rules(resident.entry), parts.clock(), reload=reload))
