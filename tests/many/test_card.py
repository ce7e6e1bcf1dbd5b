"""A card that gives memory back late, or not at all: loads wait for the absolute amount they need, for a while."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from backends.messages import Failed
from server.cli.greeting import device_words
from server.cli.ps import bars
from server.memory import gpu
from server.memory.capacity import WishChange
from server.pool import loader
from tests.many.conftest import BIG, MIB, Fleet, FleetMaker, code, ok
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


async def test_card_that_others_keep_full_is_a_503_with_the_sum_and_evicts_no_more(
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


def never_over(rig: Fleet) -> None:
    """Of neither memory, by one byte, whatever happens."""

    def check(_what: str, _figures: object) -> None:
        memory = rig.pool.status().memory
        if (host := memory.host) is not None:
            assert memory.reserved_bytes <= memory.budget_bytes
            assert host.reserved_bytes + memory.prefix_cache_reserved_bytes <= host.budget_bytes

    rig.pool.on_change.append(check)


async def test_host_memory_that_is_short_beside_a_card_is_freed_by_what_holds_it(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three models with room on the card for all, and in host memory for one of the big ones."""
    Card(monkeypatch)
    sections = {"memory": {"device": "cuda", "host_budget": 800 * MIB}}
    rig = await fleet({"a": BIG, "b": BIG, "small": 8}, budget_mib=8000, sections=sections)
    never_over(rig)
    for name in ("small", "a"):
        assert ok(await rig.ask(name, "hello"))
    told = rig.pool.status()
    assert told.memory.host is not None
    assert told.memory.host.budget_bytes == 800 * MIB
    assert rig.events("evicted") == []

    asked = await rig.pool.capacity("b", WishChange())
    assert asked.device is not None
    assert asked.host is not None
    assert (asked.fits, asked.would_evict) == (True, ["a"])
    assert asked.device.total_bytes <= asked.device.free_bytes
    assert asked.host.total_bytes > asked.host.free_bytes
    assert device_words(told.memory) == "Fake 4070, 7.8 of 12 GiB for models; 800 MiB of host memory"
    card, beside = bars(msgspec.to_builtins(told))
    assert card.endswith("of 7.8 GiB on cuda")
    assert beside.endswith("of 800 MiB of host memory")

    assert ok(await rig.ask("b", "hello"))

    assert [event["model"] for event in rig.events("evicted")] == ["a"], "small frees too little host memory"
    assert rig.sample("memory_reserved_bytes", device="cuda", memory="host") > BIG * MIB
    assert rig.sample("memory_reserved_bytes", device="cuda", memory="device") > BIG * MIB
    assert rig.sample("model_memory_predicted_bytes", model_name="b", memory="host", part="weights") == BIG * MIB


async def test_refusal_names_the_memory_that_is_too_small(fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    Card(monkeypatch)
    rig = await fleet({"a": BIG}, budget_mib=8000, sections={"memory": {"device": "cuda", "host_budget": 400 * MIB}})

    events = await rig.ask("a", "hello")

    assert code(events) == "cannot_fit"
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert "400 MiB of host memory usable" in failed.message
    assert "on the card usable" not in failed.message


async def test_what_a_load_takes_of_host_memory_is_measured_and_remembered(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    Card(monkeypatch)
    rig = await fleet({"a": BIG}, budget_mib=8000, sections={"memory": {"device": "cuda", "host_budget": 4 * GIB}})
    never_over(rig)
    rig.direct("a", f"bytes {900 * MIB} {700 * MIB}")
    assert ok(await rig.ask("a", "hello"))

    (model,) = rig.pool.status().models
    assert model.host is not None
    assert model.device is not None
    assert (model.device.measured_bytes, model.host.measured_bytes) == (900 * MIB, 700 * MIB)
    assert model.measured_bytes == 900 * MIB
    assert model.host.parts == {"runtime": 700 * MIB}

    await rig.pool.unload("a")
    assert ok(await rig.ask("a", "hello"))
    assert (
        rig.events("loading")[-1] | {"need_bytes": 900 * MIB, "need_host_bytes": 700 * MIB} == rig.events("loading")[-1]
    )


async def test_neither_budget_is_exceeded_by_a_byte_whatever_is_asked_and_measured(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that fill the card, host memory or both, as they were estimated and not, in an order that chance gives."""
    chance = random.Random(7)
    Card(monkeypatch)
    sizes = {"wide": 700, "beside": 600, "both": 400, "small": 40}
    each: dict[str, dict[str, Any]] = {"beside": {"gpu_layers": 0}, "small": {"pinned": True}}
    sections = {"memory": {"device": "cuda", "host_budget": 1900 * MIB}}
    rig = await fleet(sizes, budget_mib=2400, each=each, sections=sections)
    never_over(rig)
    rig.direct("both", f"bytes {900 * MIB} {550 * MIB}")

    served = [ok(await rig.ask(chance.choice([*sizes]), "hello")) for _ in range(16)]

    assert all(served)
    for name in ("wide", "beside", "both"):
        assert any(event["model"] == name for event in rig.events("evicted")), f"{name} had to make room"
    assert rig.state("small") == "ready", "a pinned model stays"
