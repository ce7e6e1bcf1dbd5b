"""Another program whose use of the card grows: idle models leave before it finds the card full."""

from __future__ import annotations

import pytest

from server.memory import gpu, memory, neighbours
from server.memory.capacity import WishChange
from server.memory.ledger import Tenant
from tests.many.conftest import Fleet, FleetMaker, code, fleet, ok
from tests.pool.conftest import running, until
from tests.pool.test_memory import GIB, Card

__all__ = ["fleet"]


class Shared(Card):
    """A card that a pool and another program share: what is free is what both leave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.others, self.held = GIB, 0
        for module, name in ((memory, "LOOK_EVERY_S"), (memory, "EVERY_S"), (neighbours, "_LASTS_S")):
            monkeypatch.setattr(module, name, 0.02)

    def query(self) -> gpu.GpuMemory:
        return gpu.GpuMemory("Fake 4070", self.total, self.total - self.others - self.held)

    def is_used_by(self, made: Fleet) -> None:
        """What models were measured to take is not free."""
        account = made.pool._parts.memory.ledger.device

        def look() -> None:
            holdings = [account.holding(Tenant(name)) for name in "ab"]
            self.held = sum((one.measured_bytes or 0) for one in holdings if one is not None)

        made.pool._parts.memory.ledger.on_change.append(look)

    def take(self, n_bytes: int) -> None:
        """As a program does: all of it, or it fails."""
        assert n_bytes <= self.query().free_bytes, "the card is full"
        self.others += n_bytes


async def test_idle_models_leave_ahead_of_a_program_that_grows_and_come_back_after_it(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Shared(monkeypatch)
    section = {"device": "cuda", "budget": "auto", "prefix_cache": 0}
    made = await fleet({"a": 4096, "b": 4096}, budget_mib=0, sections={"memory": section})
    card.is_used_by(made)
    for name in "ab":
        assert ok(await made.ask(name, "hi"))  # 3 GiB are free
    working = await running(made, "b")
    card.take(GIB // 2)  # its context
    await until(lambda: made.pool.status().memory.headroom_bytes == GIB // 2)
    assert made.events("evicted") == []  # the reserve is more

    card.take(3 * GIB // 2)
    await until(lambda: made.state("a") == "unloaded")
    card.take(2 * GIB)  # 1 GiB was free: without the look ahead it fails here

    assert [(event["model"], event["reason"]) for event in made.events("evicted")] == [("a", "pressure")]
    assert made.events("budget")[-1]["headroom_bytes"] == 2 * GIB
    await until(lambda: made.pool.status().memory.headroom_bytes == 4 * GIB)
    assert made.sample("memory_headroom_bytes") == 4 * GIB
    assert code(await made.ask("a", "hi")) == "memory_busy"  # and not `cannot_fit`: that is for ever
    assert made.state("b") == "ready"  # it works
    working.cancel()

    card.others = GIB
    await until(lambda: made.pool.status().memory.headroom_bytes == 0)
    assert ok(await made.ask("a", "hi"))
    told = made.pool.status().memory
    assert told.over_bytes == 0
    assert told.reserved_bytes <= told.budget_bytes


async def test_what_a_program_has_taken_for_good_is_no_reason_to_refuse_a_model_for_ever(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Shared(monkeypatch)
    monkeypatch.setattr(neighbours, "_SETTLED_S", 0.02)
    section = {"device": "cuda", "budget": "auto", "prefix_cache": 0}
    made = await fleet({"a": 4096, "huge": 12 * 1024}, budget_mib=0, sections={"memory": section})
    whole = made.pool.status().memory.budget_bytes
    card.take(9 * GIB)
    await until(lambda: whole - made.pool.status().memory.budget_bytes == 9 * GIB)  # it has stopped growing

    assert code(await made.ask("a", "hi")) == "memory_busy"
    assert "others hold the rest" in str((await made.pool.capacity("a", WishChange())).reason)
    assert code(await made.ask("huge", "hi")) == "cannot_fit"
