"""Books for scheduler tests: a budget, a size per model, and the pool's part of booking."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.memory.placement import Refused


@dataclass
class FakeBooks:
    """Keeps the ledger's rules: what is held never exceeds the budget, unless the budget shrinks."""

    budget: int
    sizes: dict[str, int]
    pinned: frozenset[str] = frozenset()
    shrunk: dict[tuple[str, int], int] = field(default_factory=dict)
    """(model, smaller_by) -> its size in the plan that follows after so many."""
    held: dict[str, int] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        return max(0, self.budget - sum(self.held.values()))

    @property
    def over_bytes(self) -> int:
        return max(0, sum(self.held.values()) - self.budget)

    def held_bytes(self, model: str) -> int:
        return self.held.get(model, 0)

    def need_bytes(self, model: str, *, smaller_by: int) -> int | Refused:
        size = self.shrunk.get((model, smaller_by), self.sizes[model])
        if size > self.budget:
            return Refused("cannot_fit", f"{model} needs {size}, {self.budget} usable")
        if size > self.budget - sum(self.held_bytes(m) for m in self.pinned if m != model):
            return Refused("memory_busy", f"{model} needs {size}, pinned models hold the rest")
        return size

    def reserve(self, model: str, *, smaller_by: int = 0) -> None:
        """What the loader does before it starts a worker."""
        need = self.need_bytes(model, smaller_by=smaller_by)
        assert isinstance(need, int)
        assert need <= self.free_bytes, f"{model} loads without room: {need} needed, {self.free_bytes} free"
        assert model not in self.held
        self.held[model] = need

    def release(self, model: str) -> None:
        """What the pool does when a worker has exited."""
        del self.held[model]
