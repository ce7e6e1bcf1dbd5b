"""A card that gives memory back late, or not at all: loads wait for the absolute amount they need, for a while."""

from __future__ import annotations

import pytest

from backends.messages import Failed
from server.memory import gpu
from server.pool import loader
from tests.many.conftest import BIG, MIB, FleetMaker, code, ok
from tests.pool.conftest import read, until
from tests.pool.test_memory import GIB, Card

ON_CARD = {"memory": {"device": "cuda"}}


async def test_swap_waits_until_the_card_has_what_the_next_model_needs(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch)
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=1100, sections=ON_CARD)
    assert ok(await rig.ask("a", "hello"))
    await rig.pool.unload("a")
    card.free = 100 * MIB  # what the driver says until long after the process has gone
    card.asked.clear()

    stream = rig.submit("b", "hello")
    await until(card.asked.is_set)
    assert rig.state("b") == "loading"
    assert [m.pid for m in rig.pool.status().models] == [None, None], "a worker was started without its memory"
    assert rig.pool.status().memory.reserved_bytes > BIG * MIB, "and yet it is booked"
    card.free = 2 * GIB
    assert ok(await read(stream))


async def test_card_that_others_keep_full_is_a_503_with_the_sum_and_evicts_nobody_more(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card(monkeypatch)
    monkeypatch.setattr(loader, "FREE_WITHIN_S", 0.3)
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=3000, sections=ON_CARD)
    assert ok(await rig.ask("a", "hello"))
    card.free = 100 * MIB

    events = await rig.ask("b", "hello")

    assert code(events) == "memory_busy"
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert "other programs hold the card's memory" in failed.message
    assert failed.retry_after_s is not None
    assert rig.events("evicted") == []
    assert rig.state("b") == "unloaded"
    assert rig.state("a") == "ready"


async def test_driver_that_does_not_answer_holds_up_no_load(fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    rig = await fleet({"a": BIG}, budget_mib=1100, sections=ON_CARD)

    def broken() -> gpu.GpuMemory:
        raise gpu.GpuError("the driver is gone")

    monkeypatch.setattr(gpu, "_query", broken)
    assert ok(await rig.ask("a", "hello"))
