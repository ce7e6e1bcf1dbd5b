"""A budget for scheduler tests: sizes per model, and the pool's part of reserving. Plain numbers are host memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from backends.plan import Amount
from server.scheduling.budget import Refused


def amount(n_bytes: int | Amount) -> Amount:
    return Amount(host=n_bytes) if isinstance(n_bytes, int) else n_bytes


@dataclass
class FakeBudget:
    """Keeps the ledger's rules: what is held never exceeds a budget, unless the budget shrinks."""

    budget: int | Amount
    sizes: Mapping[str, int | Amount]
    pinned: frozenset[str] = frozenset()
    shrunk: dict[tuple[str, int], int] = field(default_factory=dict)
    """(model, smaller_by) -> its size in the plan that follows after so many."""
    grown: dict[tuple[str, int], int | Amount] = field(default_factory=dict)
    """(model, context) -> its size with so much."""
    holders: dict[str, Amount] = field(default_factory=dict)

    @property
    def all_held(self) -> Amount:
        return sum(self.holders.values(), Amount())

    @property
    def free(self) -> Amount:
        return (amount(self.budget) - self.all_held).no_less_than_none()

    @property
    def over(self) -> Amount:
        return (self.all_held - amount(self.budget)).no_less_than_none()

    @property
    def exceeded(self) -> bool:
        return bool(self.over)

    def held(self, model: str) -> Amount:
        return self.holders.get(model, Amount())

    def need(self, model: str, *, smaller_by: int, context: int = 0) -> Amount | Refused:
        plain = self.grown[model, context] if context else self.shrunk.get((model, smaller_by), self.sizes[model])
        size, budget = amount(plain), amount(self.budget)
        if not size.within(budget):
            return Refused("cannot_fit", f"{model} needs {size}, {budget} usable")
        if not size.within(budget - sum((self.held(m) for m in self.pinned if m != model), Amount())):
            return Refused("memory_busy", f"{model} needs {size}, pinned models hold the rest")
        return size

    def reserve(self, model: str, *, smaller_by: int = 0, context: int = 0) -> None:
        """What the loader does before it starts a worker."""
        need = self.need(model, smaller_by=smaller_by, context=context)
        assert isinstance(need, Amount)
        assert need.within(self.free), f"{model} loads without room: {need} needed, {self.free} free"
        assert model not in self.holders
        self.holders[model] = need

    def release(self, model: str) -> None:
        """What the pool does when a worker has exited."""
        del self.holders[model]
