"""The budget as the scheduler asks for it: the ledger's figures, and what a load of each model would reserve.

The way of a number: `MemoryBudget.need` -> `placement.place` -> `Estimator.estimate` -> the model's `Backend.estimate`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backends.backend import HeaderError
from backends.messages import whole_blocks
from backends.plan import Amount, Wish
from backends.registry import backend_of
from server.memory.capacity import capacity_of
from server.memory.estimator import Estimator
from server.memory.files import ModelFiles
from server.memory.idle_keys import idle_keys
from server.memory.learned import Learned
from server.memory.ledger import Tenant
from server.memory.placement import Placed, longest_context, memory_words, place
from server.memory.speeds import SpeedEstimator
from server.scheduling.budget import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from backends.messages import Device, LoadPlan
    from server.memory.capacity import Capacity, WishChange
    from server.memory.files import FileFacts
    from server.memory.memory import Memory
    from server.scheduling.eviction import Candidate
    from server.settings.catalog import CatalogEntry
    from server.settings.config import ModelConfig


def wish(config: ModelConfig, device: Device, *, context: int = 0) -> Wish:
    """What the configuration asks for, and what it leaves to choose; `context`: tokens that an open one has to hold."""
    return Wish(
        context=None if config.context == "auto" else config.context,
        parallel=config.parallel,
        kv_type=config.kv_type,
        gpu_layers=None if config.gpu_layers == "auto" else config.gpu_layers,
        device=device,
        open=config.open,
        kv_tokens=None if config.kv_tokens == "auto" else config.kv_tokens,
        kv_offload=config.kv_offload,
        context_max=None if config.context_max == "auto" else config.context_max,
        least_context=context,
    )


def likely_plans(facts: FileFacts, wanted: Wish) -> list[LoadPlan]:
    """What placement may choose, best first."""
    return list(backend_of(facts.header).plans(facts.header, wanted))


class MemoryBudget:
    """Instant answers; what a model needs is kept until something about it changes. See `scheduling.budget.Budget`."""

    def __init__(self, entries: Mapping[str, CatalogEntry]) -> None:
        self.memory: Memory | None = None
        """None until `settle_on`."""
        self.exceeded = False
        self.files = ModelFiles()
        learned = Learned()
        self.estimator = Estimator(learned)
        self.speeds = SpeedEstimator(learned)
        self._entries = dict(entries)
        self._needs: dict[tuple[str, int, int], tuple[tuple[Amount, Amount, int], Amount | Refused]] = {}
        self._most: dict[str, tuple[tuple[Amount, int], int | None]] = {}

    def settle_on(self, memory: Memory) -> None:
        """The pool has started: this is the machine's."""
        self.memory = memory
        memory.ledger.on_change.append(self._on_change)

    def _on_change(self) -> None:
        self.exceeded = bool(self.over)

    @property
    def free(self) -> Amount:
        """What is left of the budgets."""
        return self.memory.free if self.memory else Amount()

    @property
    def over(self) -> Amount:
        """How much models hold above the budgets."""
        return self.memory.ledger.over if self.memory else Amount()

    def held(self, model: str) -> Amount:
        """What leaves with the model."""
        reservation = self.memory.ledger.reservation(Tenant(model)) if self.memory else None
        return reservation.reserved if reservation is not None else Amount()

    def usable(self, model: str) -> Amount:
        """What the model can have when all leave who may: the budgets without pinned models and what else stays."""
        if self.memory is None:
            return Amount()
        pinned = (name for name, entry in self._entries.items() if entry.config.pinned and name != model)
        guest = Amount() if self.memory.guest is None else self.memory.guest.stays
        return (self.memory.ledger.budget - sum(map(self.held, pinned), guest)).no_less_than_none()

    def need(self, model: str, *, smaller_by: int, context: int = 0) -> Amount | Refused:
        """What a load would reserve, or why it never can; `context`: tokens that an open one has to hold."""
        if self.memory is None:
            return Amount()
        usable = self.usable(model)
        state = (usable, self.memory.ledger.most, self.estimator.version + self.speeds.version)
        context = whole_blocks(context)  # so that no more is kept than there are plans
        known = self._needs.get((model, smaller_by, context))
        if known is not None and known[0] == state:
            return known[1]
        placed = self.place(self._entries[model], usable=usable, smaller_by=smaller_by, context=context)
        need = Amount() if placed is None else placed.footprint.amount if isinstance(placed, Placed) else placed
        self._needs[model, smaller_by, context] = (state, need)
        return need

    def most_context(self, model: str) -> int | None:
        """Tokens of context that the model could be loaded with, beside pinned models; None where that is not known or
        where it reads no text. A fixed context is what it is.
        """
        facts, entry = self.files.facts(model), self._entries.get(model)
        if self.memory is None or facts is None or entry is None:
            return None
        usable = self.usable(model)
        state = (usable, self.estimator.version)
        known = self._most.get(model)
        if known is None or known[0] != state:
            estimate = self.estimator.of(facts, within=usable)
            most = longest_context(facts.header, wish(entry.config, self.memory.device), usable, estimate)
            known = self._most[model] = (state, most)
        return known[1]

    def context_bound(self, model: str) -> int:
        """Tokens of context beyond which no budget would help; 0 of a model whose context does not grow."""
        facts, entry = self.files.facts(model), self._entries.get(model)
        if facts is None or entry is None or entry.config.context != "auto" or facts.header.gives != "text":
            return 0
        bound = backend_of(facts.header).longest_context(facts.header, None) or 0
        return bound if entry.config.context_max == "auto" else min(bound, entry.config.context_max)

    def put(self, entry: CatalogEntry) -> None:
        """A model that is new, or is to be loaded otherwise: nothing is known of it any more."""
        self._entries[entry.name] = entry
        self.files.forget(entry.name)
        self.forget(entry.name)

    def drop(self, model: str) -> None:
        """The model is no more."""
        self._entries.pop(model, None)
        self.files.forget(model)
        self.forget(model)

    def forget(self, model: str) -> None:
        """The model's file or what is known of it has changed."""
        for key in [key for key in self._needs if key[0] == model]:
            del self._needs[key]
        self._most.pop(model, None)

    def place(
        self, entry: CatalogEntry, *, usable: Amount, smaller_by: int = 0, context: int = 0
    ) -> Placed | Refused | None:
        """How the model would be loaded if it could have so many bytes; None while its file has not been looked at."""
        facts = self.files.facts(entry.name)
        if facts is None or self.memory is None:
            return None
        ledger = self.memory.ledger
        placed = place(
            entry.name,
            facts.header,
            wish(entry.config, self.memory.device, context=context),
            budget=ledger.most,
            free=usable,
            estimate=self.estimator.of(facts, within=usable),
            speed=self.speeds.of(facts),
            smaller_by=smaller_by,
        )
        if isinstance(placed, Refused) and placed.code == "memory_busy" and ledger.withheld:
            size = memory_words(self.memory.device, ledger.withheld)
            return replace(placed, message=f"{placed.message}; {size} are not lent to models at this hour or moment")
        return placed

    async def capacity(self, entry: CatalogEntry, change: WishChange, residents: Sequence[Candidate]) -> Capacity:
        """What a load would come to with the wishes of the moment; loads nothing. Raises HeaderError."""
        assert self.memory is not None
        facts = await self.files.look(change.of(entry), otherwise=bool(change.options))
        return capacity_of(
            entry.name,
            facts.header,
            change.over(wish(entry.config, self.memory.device)),
            lambda plan: self.estimator.estimate(facts, plan),
            budget=self.memory.ledger.budget,
            most=self.memory.ledger.most,
            free=self.memory.free + self.held(entry.name),
            residents=residents,
            speed=lambda plan: self.speeds.estimate(facts, plan),
            notes=idle_keys(entry.config, entry.backend, self.memory.device),
        )

    async def measure_speeds(self) -> list[str]:
        """Measure what the machine does for the models' engines, where that is not known; whose is known now."""
        new = await self.speeds.measure({entry.backend for entry in self._entries.values()})
        if new:
            await self.estimator.save()
        return new

    async def ask_dry(self, entries: Iterable[CatalogEntry]) -> dict[str, str]:
        """Find out the exact sizes of the models that have been looked at; those that the engine refuses, and why."""
        assert self.memory is not None
        device = self.memory.device
        seen = [(entry, facts) for entry in entries if (facts := self.files.facts(entry.name)) is not None]
        await self.estimator.ask_dry([(facts, likely_plans(facts, wish(e.config, device))) for e, facts in seen])
        told = {e.name: (facts.key, self.estimator.refused.get(facts.key)) for e, facts in seen}
        refused = {name: (key, why) for name, (key, why) in told.items() if why is not None}
        for name, (key, why) in refused.items():
            self.files.refuse(name, key, why)
        return {name: why for name, (_, why) in refused.items()}

    async def inspect(self, entry: CatalogEntry) -> None:
        """Look at a model's files, whatever is wrong with them."""
        try:
            await self.files.inspect(entry)
        except HeaderError:
            pass  # `files.problem` tells
        finally:
            self.forget(entry.name)
