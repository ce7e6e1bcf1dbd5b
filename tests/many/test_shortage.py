"""Too little memory where the ledger said there was enough: the ladder of a load, and a worker that runs out of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from backends.messages import Failed, Started
from tests.many.conftest import BIG, MIB, FleetMaker, code, ok
from tests.pool.conftest import text, until


async def test_load_without_memory_climbs_the_ladder_once_and_says_so(fleet: FleetMaker) -> None:
    rig = await fleet({"idle": BIG, "a": BIG}, budget_mib=1000)
    assert ok(await rig.ask("idle", "hello"))
    rig.direct("a", "oom cannot allocate 300 MiB")

    events = await rig.ask("a", "hello")

    assert code(events) == "out_of_memory"
    assert rig.loads() == 1 + 3
    assert [figures["model"] for figures in rig.events("evicted")] == ["idle"]
    failed = events[-1]
    assert isinstance(failed, Failed)
    assert failed.retry_after_s is not None
    assert "ran out of memory while it loaded (cannot allocate 300 MiB): the plan was" in failed.message
    assert "weights 300 MiB" in failed.message
    assert "at context 512, parallel" in failed.message
    assert "of 1000 MiB were free beside it" in failed.message
    assert "hint:" in failed.message
    assert rig.sample("model_loads_total", model_name="a", outcome="oom") == 3


async def test_load_that_ran_out_of_memory_is_estimated_higher_until_one_is_measured(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=1000, each={"a": {"parallel": 1, "kv_type": "f16"}})  # no other plan
    await until(lambda: rig.pool.info("a").header is not None)
    took = f"bytes {(BIG + 8) * MIB}"
    rig.direct("a", "oom no memory")
    rig.pool.on_change.append(lambda what, _: rig.direct("a", took) if what == "load_failed" else None)
    assert ok(await rig.ask("a", "hello"))
    first, second = (int(str(figures["need_bytes"])) for figures in rig.events("loading"))
    assert second == first + 64 * MIB

    await rig.pool.unload("a")
    assert ok(await rig.ask("a", "hello"))
    assert rig.events("loading")[-1]["need_bytes"] == (BIG + 8) * MIB


async def test_memory_that_comes_back_ends_the_ladder(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=1000, each={"a": {"context": 512}})
    rig.direct("a", "oom no memory")
    rig.pool.on_change.append(lambda what, _: rig.direct("a", f"bytes {BIG * MIB}") if what == "load_failed" else None)
    assert ok(await rig.ask("a", "hello"))
    assert rig.loads() == 2


async def test_artificial_shortage_of_memory_leaves_nearly_all_served(fleet: FleetMaker) -> None:
    """Loads fail at random for want of memory; each climbs the ladder, and the server goes on."""
    rig = await fleet({"a": BIG, "b": BIG, "c": BIG}, budget_mib=700)
    chance = random.Random(7)

    def trouble(what: str, figures: dict[str, object]) -> None:
        if what in ("evicted", "unloaded"):
            lacks = chance.random() < 0.2
            rig.direct(str(figures["model"]), "oom no memory" if lacks else f"bytes {BIG * MIB}")
        elif what == "load_failed":
            rig.direct(str(figures["model"]), f"bytes {BIG * MIB}")

    rig.pool.on_change.append(trouble)
    answers = [await rig.ask("abc"[chance.randrange(3)], "hello") for _ in range(40)]
    assert sum(ok(events) for events in answers) >= 0.99 * len(answers)


async def test_shortage_of_memory_while_running_restarts_that_worker_and_repeats_what_had_no_token(
    fleet: FleetMaker, tmp_path: Path
) -> None:
    """Three jobs at a time, of which one now and then meets a step without memory; another model serves all along."""
    rig = await fleet({"a": BIG, "other": BIG}, budget_mib=1000, each={"a": {"parallel": 3}})
    assert all(ok(events) for events in await rig.ask_all(("a", "hello"), ("other", "hello")))
    other, chance = rig.pid("other"), random.Random(3)
    stop = asyncio.Event()

    async def bystander() -> int:
        n = 0
        while not stop.is_set():
            assert ok(await rig.ask("other", "hello"))
            n += 1
        return n

    beside = asyncio.create_task(bystander())
    n_short, answers = 0, []
    for i in range(40):
        short = chance.random() < 0.25
        n_short += short
        asked = [f"!oom-once {tmp_path / str(i)}" if short else "zero", "one", "two"]
        answers += await rig.ask_all(*(("a", prompt) for prompt in asked))
    stop.set()

    failed = [events for events in answers if not ok(events)]
    assert all(code(events) == "out_of_memory" and text(events) for events in failed), "no token was sent: repeat it"
    assert len(failed) <= 2 * n_short
    assert all(sum(isinstance(event, Started) for event in events) == 1 for events in answers)
    assert len(rig.events("crashed")) == n_short >= 5
    assert {(figures["model"], figures["code"]) for figures in rig.events("crashed")} == {("a", "out_of_memory")}
    assert await beside > 10
    assert rig.pid("other") == other
    assert rig.sample("worker_crashes_total", model_name="a") == n_short


async def test_shortage_after_the_first_token_ends_that_stream_with_the_reason(fleet: FleetMaker) -> None:
    rig = await fleet({"a": BIG}, budget_mib=1000)
    events = await rig.ask("a", "!oom")
    assert code(events) == "out_of_memory"
    assert "ran out of memory" in str(getattr(events[-1], "message", ""))
    assert len(rig.events("crashed")) == 1
    assert ok(await rig.ask("a", "hello"))


async def test_models_that_take_a_fourth_more_than_predicted_correct_the_ledger_and_serve_all(
    fleet: FleetMaker,
) -> None:
    """Two fit by the header and one by what they really take: the surplus leaves, and the next plan knows."""
    rig = await fleet({"a": BIG, "b": BIG, "c": BIG}, budget_mib=2 * BIG + 100)
    for name in "abc":
        rig.direct(name, f"bytes {BIG * 5 // 4 * MIB}")
    chance = random.Random(5)
    answers = [await rig.ask("abc"[chance.randrange(3)], "hello") for _ in range(40)]

    assert all(ok(events) for events in answers)
    reasons = [figures["reason"] for figures in rig.events("evicted")]
    assert reasons[0] == "pressure"
    assert set(reasons[3:]) == {"room"}, "a measured estimate is not wrong again"
    memory = rig.pool.status().memory
    assert memory.over_bytes == 0
    assert memory.reserved_bytes <= memory.budget_bytes


async def test_what_fits_only_at_another_hour_is_refused_for_now_and_not_for_ever(fleet: FleetMaker) -> None:
    hours = {"00:00-12:00": 100 * MIB, "12:00-00:00": 100 * MIB}
    rig = await fleet({"a": BIG, "huge": 5000}, budget_mib=1000, sections={"memory": {"hours": hours}})
    answers = await rig.ask_all(("a", "hello"), ("huge", "hello"))
    assert [code(events) for events in answers] == ["memory_busy", "cannot_fit"]
    assert "900 MiB are not lent to models at this hour" in str(getattr(answers[0][-1], "message", ""))
