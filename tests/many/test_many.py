"""Many models on one budget over real worker processes: swaps, refusals, fairness, faults. The engine is a fake."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from backends.machine import host
from backends.messages import Failed, Generate, TextPrompt
from server.pool.pool import PoolError
from server.scheduling.scheduler import Rules, SwapRules
from tests.many.conftest import BIG, MIB, Fleet, FleetMaker, code, ok, write_model
from tests.pool.conftest import BOUND_S, read, until


async def ask_in_turn(fleet: Fleet, models: list[str], n: int) -> list[float]:
    """One client: asks, waits, asks the next; how long each took."""
    taken = []
    for i in range(n):
        began = time.monotonic()
        assert ok(await fleet.ask(models[i % len(models)], "hello"))
        taken.append(time.monotonic() - began)
    return taken


async def test_models_that_fit_stay_and_the_others_are_swapped_with_a_reason_in_bytes(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG, "c": BIG}, budget_mib=700)
    assert ok(await rig.ask("a", "hello"))
    assert ok(await rig.ask("b", "hello"))
    assert rig.events("evicted") == []

    assert ok(await rig.ask("c", "hello"))

    (evicted,) = rig.events("evicted")
    assert (evicted["reason"], evicted["for"]) == ("room", "c")
    assert evicted["freed_bytes"] == BIG * MIB
    assert rig.sample("model_evictions_total", model_name=str(evicted["model"]), reason="room") == 1
    assert rig.sample("swap_wait_seconds_count", model_name="c") == 1
    assert rig.pool.status().memory.reserved_bytes <= 700 * MIB


async def test_twenty_first_requests_cause_one_load(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=700)
    answers = await rig.ask_all(*[("a", f"number {i}") for i in range(20)])
    assert all(ok(events) for events in answers)
    assert rig.loads() == 1


async def test_model_larger_than_the_budget_is_refused_among_others_and_evicts_none(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "huge": 2000}, budget_mib=700)
    assert ok(await rig.ask("a", "hello"))
    taken = []
    for i in range(100):
        if i % 10 == 0:
            assert ok(await rig.ask("a", "hello"))
        began = time.process_time()
        assert code(await rig.ask("huge", "hello")) == "cannot_fit"
        taken.append(time.process_time() - began)

    assert sorted(taken)[-6] < 0.1
    assert rig.loads() == 1
    assert rig.events("evicted") == []
    refused = rig.events("rejected")[0]
    assert "700 MiB usable" in str(refused["reason"])


async def test_pinned_model_never_leaves(fleet: FleetMaker) -> None:
    rig = await fleet({"pin": BIG, "a": BIG, "b": BIG}, budget_mib=700, each={"pin": {"pinned": True}})
    await rig.pool.load("pin")
    await ask_in_turn(rig, ["a", "b"], 6)
    assert {figures["model"] for figures in rig.events("evicted")} == {"a", "b"}
    assert rig.state("pin") == "ready"


async def test_round_robin_over_four_models_with_room_for_one_neither_thrashes_nor_starves(fleet: FleetMaker) -> None:
    models = ["a", "b", "c", "d"]
    rig = await fleet(dict.fromkeys(models, BIG), budget_mib=500)
    await ask_in_turn(rig, models, 4)  # every load has been measured
    before = rig.loads()

    clients = (ask_in_turn(rig, models[i % 4 :] + models[: i % 4], 15) for i in range(12))
    taken = [seconds for client in await asyncio.gather(*clients) for seconds in client]

    assert rig.loads() - before <= len(taken) / 3
    load_s = max(float(str(figures["seconds"])) for figures in rig.events("loaded"))
    assert max(taken) <= 6 * max(load_s, 0.5) + 1.0
    assert rig.events("failed") == []


async def test_one_client_gets_its_share_beside_fifty_of_another_model(fleet: FleetMaker) -> None:
    rig = await fleet({"many": BIG, "one": BIG}, budget_mib=500)
    await ask_in_turn(rig, ["many", "one"], 2)
    served = 0

    async def crowd() -> None:
        nonlocal served
        while served < 80:
            answered = ok(await rig.ask("many", "!slow 5 4"))
            served += answered

    crowds = [asyncio.create_task(crowd()) for _ in range(50)]
    taken = []
    while served < 80:
        taken += await ask_in_turn(rig, ["one"], 1)
    await asyncio.gather(*crowds)

    load_s = max(float(str(figures["seconds"])) for figures in rig.events("loaded"))
    taken.sort()
    assert taken[int(0.95 * len(taken))] <= 2 * 6 * load_s
    assert rig.loads() <= len(taken)


async def test_two_hundred_requests_for_fifty_names_load_one_at_a_time_within_the_budget(fleet: FleetMaker) -> None:
    names = [f"m{i}" for i in range(10)]
    rig = await fleet(
        dict.fromkeys(names, BIG),
        budget_mib=1000,
        sections={"server": {"max_queue": 500}, "scheduler": {"template_process": False}},
    )
    most, loading = 0, 0

    def watch(what: str, figures: dict[str, object]) -> None:
        nonlocal most, loading
        loading += (what == "loading") - (what in ("loaded", "load_failed", "load_refused"))
        most = max(most, loading)
        memory = rig.pool.status().memory
        assert memory.reserved_bytes <= memory.budget_bytes

    rig.pool.on_change.append(watch)
    known = [name for name in (f"m{i}" for i in range(50)) if rig.catalog.resolve(name) is not None]
    assert known == names  # an unknown name never reaches the pool
    answers = await rig.ask_all(*[(names[i % 10], "hello") for i in range(200)])

    assert all(ok(events) for events in answers)
    assert most == 1
    assert rig.loads() <= 20


async def test_interactive_request_is_served_before_background_ones(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG, "c": BIG}, budget_mib=500)
    assert ok(await rig.ask("a", "hello"))
    busy = rig.submit("a", "!slow 20 20")
    await busy.first()
    background = rig.submit("b", "hello", priority=-1)
    interactive = rig.submit("c", "hello", priority=1)
    await asyncio.gather(read(busy), read(background), read(interactive))
    loaded = [figures["model"] for figures in rig.events("loaded")]
    assert loaded.index("c") < loaded.index("b")


async def test_waiter_that_hangs_up_cancels_a_swap_no_other_wants(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=500)
    (rig.folder / "b.gguf.fake").write_text("slow 5")
    assert ok(await rig.ask("a", "hello"))
    waiter = rig.submit("b", "hello")
    await until(lambda: rig.pool._residents["b"].worker is not None)
    waiter.cancel()
    assert code(await read(waiter)) == "cancelled"
    await until(lambda: rig.state("b") == "unloaded")
    assert "load_cancelled" in rig.names()
    assert ok(await rig.ask("a", "hello"))


async def test_looking_wakes_nothing_and_keeps_nothing(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=500, each={"a": {"keep_alive_s": 0.3}})
    assert ok(await rig.ask("a", "hello"))
    began = time.monotonic()
    while rig.state("a") != "unloaded":
        rig.metrics.render()
        rig.pool.info("b")
        rig.pool.status()
        await asyncio.sleep(0.01)
        assert time.monotonic() - began < 5
    assert rig.loads() == 1
    assert rig.sample("model_evictions_total", model_name="a", reason="ttl") == 1


async def test_clock_on_the_wall_does_not_matter(fleet: FleetMaker, monkeypatch) -> None:
    rig = await fleet({"a": BIG}, budget_mib=500, each={"a": {"keep_alive_s": 60}})
    assert ok(await rig.ask("a", "hello"))
    for jump_s in (3600.0, -7200.0):
        real = time.time
        monkeypatch.setattr(time, "time", lambda jump_s=jump_s, real=real: real() + jump_s)
        assert ok(await rig.ask("a", "hello"))
        rig.pool._tick()
    assert rig.loads() == 1
    assert rig.events("evicted") == []


async def test_keep_alive_of_a_request_holds_until_the_next(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=500)
    entry = rig.catalog.resolve("a")
    assert entry is not None
    assert ok(await rig.ask("a", "hello"))
    assert ok(await read(rig.pool.submit(entry, Generate("x", TextPrompt("hello")), keep_alive_s=0.0)))
    await until(lambda: rig.state("a") == "unloaded")


async def test_memory_taken_from_outside_evicts_idle_models_and_what_comes_back_is_used(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel's word on what is available is simulated; the automatic budget follows it by its own clock."""
    available = tmp_path / "available"
    available.write_text(str(4000 * MIB))
    monkeypatch.setenv(host.TEST_FREE_FILE, str(available))
    memory = {"budget": "auto", "reserve": 600 * MIB}
    rig = await fleet({"a": 2 * BIG, "b": 2 * BIG}, budget_mib=0, sections={"memory": memory})
    assert all(ok(events) for events in await rig.ask_all(("a", "hello"), ("b", "hello")))
    before = rig.pool.status().memory

    available.write_text(str(2000 * MIB))
    began = time.monotonic()
    await until(lambda: bool(rig.events("evicted")))
    assert time.monotonic() - began < 5
    assert rig.events("evicted")[0]["reason"] == "pressure"
    await until(lambda: rig.pool.status().memory.over_bytes == 0)
    after = rig.pool.status().memory
    assert after.reserved_bytes <= after.budget_bytes < before.reserved_bytes

    available.write_text(str(4000 * MIB))
    began = time.monotonic()
    await until(lambda: rig.pool.status().memory.budget_bytes > 0.95 * before.budget_bytes)
    assert time.monotonic() - began < 5
    assert all(ok(events) for events in await rig.ask_all(("a", "hello"), ("b", "hello")))
    assert len(rig.events("evicted")) == 1


async def test_pressure_can_be_endured(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=1000, sections={"memory": {"on_pressure": "keep"}})
    assert ok(await rig.ask("a", "hello"))
    memory = rig.pool._parts.memory
    memory.ledger.host.resize(100 * MIB)
    for tell in memory.on_budget_change:
        tell()
    assert rig.state("a") == "ready"
    assert rig.events("evicted") == []


async def test_file_that_was_too_large_and_is_replaced_by_a_smaller_one_is_served_at_once(fleet: FleetMaker) -> None:
    rig = await fleet({"a": 2000}, budget_mib=700)
    assert code(await rig.ask("a", "hello")) == "cannot_fit"
    write_model(rig.folder / "new.gguf", BIG)
    (rig.folder / "new.gguf").replace(rig.folder / "a.gguf")
    rig.direct("a", f"bytes {BIG * MIB}")
    assert ok(await rig.ask("a", "hello"))


async def test_preloads_that_do_not_fit_together_keep_the_first_and_name_the_others(fleet: FleetMaker) -> None:
    names = ("a", "b", "huge", "c", "small")
    sizes = {"a": BIG, "b": BIG, "huge": 2000, "c": BIG, "small": 20}
    rig = await fleet(sizes, budget_mib=800, each={name: {"preload": True} for name in names})
    await until(lambda: rig.state("small") == "ready")
    skipped = {str(figures["model"]): str(figures["reason"]) for figures in rig.events("preload_skipped")}
    assert set(skipped) == {"huge", "c"}
    assert "800 MiB usable" in skipped["huge"]
    assert "left beside the others" in skipped["c"]
    assert [figures["model"] for figures in rig.events("loaded")] == ["a", "b", "small"]
    assert rig.events("evicted") == []
    assert ok(await rig.ask("c", "hello"))  # a request still gets it


async def test_drain_tells_who_waits_by_hand_for_a_model_whose_turn_has_not_come(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=700)
    rig.direct("a", "slow 15")
    first, second = (asyncio.create_task(asyncio.wait_for(rig.pool.load(name), BOUND_S)) for name in ("a", "b"))
    await until(lambda: rig.state("a") == "loading")
    began = time.monotonic()
    rig.pool.begin_drain()
    with pytest.raises(PoolError, match="shutting down") as told:
        await second
    assert told.value.code == "draining"
    with pytest.raises(PoolError):
        await first
    assert time.monotonic() - began < 5, "a load is not waited for"


async def test_killed_workers_cost_their_own_jobs_and_no_others(fleet: FleetMaker) -> None:
    rig = await fleet({"victim": BIG, "other": BIG}, budget_mib=1000)
    assert all(ok(events) for events in await rig.ask_all(("victim", "hello"), ("other", "hello")))
    for _ in range(4):
        other = asyncio.create_task(rig.ask("other", "!slow 10 30"))
        stream = rig.submit("victim", "!slow 50 100")
        iterator = aiter(stream)
        await anext(iterator)
        await anext(iterator)
        began = time.monotonic()
        os.kill(rig.pid("victim"), signal.SIGKILL)
        rest = [event async for event in stream]
        assert isinstance(rest[-1], Failed)
        assert rest[-1].code == "worker_crashed"
        assert ok(await rig.ask("victim", "hello"))
        assert time.monotonic() - began < 3 + 2
        assert ok(await other)


async def test_fifo_is_there_to_be_measured_against(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG, "b": BIG}, budget_mib=500, rules=Rules(swaps=SwapRules(policy="fifo")))
    answers = await rig.ask_all(("a", "1"), ("b", "2"), ("a", "3"), ("b", "4"))
    assert all(ok(events) for events in answers)
    assert rig.loads() == 4
