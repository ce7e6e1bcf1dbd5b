"""Subscriptions: in order, from now on, bounded, and ended by the server's end."""

from __future__ import annotations

import asyncio

import pytest

from server.pool.events import KEPT, MAX_SUBSCRIBERS, MAX_UNREAD, Events, Happening, Subscription, TooManyReadersError
from tests.pool.conftest import BOUND_S, Maker


def feed(*, limit: int = 4) -> Events:
    return Events(limit=limit, clock=lambda: 1.5)


async def rest(reader: Subscription) -> list[Happening]:
    async with asyncio.timeout(BOUND_S):
        return [happening async for happening in reader]


async def test_a_happening_names_its_time_model_reason_and_figures() -> None:
    events = feed()
    events.on_change("loading", {"model": "before"})
    reader = events.subscribe()
    events.on_change("unloading", {"model": "a", "reason": "ttl", "freed_bytes": 7})
    events.on_change("stopped", {})

    assert await rest(reader) == [
        Happening(1.5, "unloading", "a", "ttl", {"freed_bytes": 7}),
        Happening(1.5, "stopped"),
    ]


async def test_a_reader_too_far_behind_is_cut_and_holds_nothing() -> None:
    events = feed(limit=4)
    slow, other = events.subscribe(), events.subscribe()
    for index in range(100):
        events.on_change("loaded", {"model": f"m{index}"})
        if index < 4:
            assert (await anext(other)).model == f"m{index}"
    assert len(slow._unread) == 1

    (only,) = await rest(slow)
    assert only.what == "cut"
    assert "4 events behind" in (only.reason or "")


async def test_who_leaves_is_told_no_more_and_readers_are_bounded() -> None:
    events = feed()
    readers = [events.subscribe() for _ in range(MAX_SUBSCRIBERS)]
    with pytest.raises(TooManyReadersError):
        events.subscribe()
    events.leave(readers[0])
    events.leave(readers[0])
    events.on_change("loaded", {})
    assert not readers[0]._unread
    assert events.n_readers == MAX_SUBSCRIBERS - 1


async def test_the_last_that_happened_are_told_again_to_who_asks() -> None:
    events = Events(limit=MAX_UNREAD)
    for index in range(KEPT + 10):
        events.on_change("loaded", {"model": f"m{index}"})
    readers = {last: events.subscribe(last=last) for last in (0, 2, 10 * KEPT)}
    events.on_change("stopped", {})

    told = {last: [h.model or h.what for h in await rest(reader)] for last, reader in readers.items()}
    assert told[0] == ["stopped"]
    assert told[2] == [f"m{KEPT + 8}", f"m{KEPT + 9}", "stopped"]
    assert told[10 * KEPT] == [*(f"m{index}" for index in range(10, KEPT + 10)), "stopped"]


async def test_who_comes_after_the_end_is_told_that_it_is_over() -> None:
    events = feed()
    events.on_change("stopped", {})
    assert [h.what for h in await rest(events.subscribe())] == ["stopped"]


async def test_a_pool_tells_its_whole_life(make: Maker) -> None:
    rig = await make("a")
    events = Events()
    rig.pool.on_change.append(events.on_change)
    reader = events.subscribe()

    await rig.ask("a", "hello")
    await rig.pool.unload("a")
    await rig.pool.close(0)
    await rig.pool.close(0)

    told = await rest(reader)
    whats = [h.what for h in told]
    assert [w for w in whats if w in ("loading", "loaded", "unloading", "unloaded", "draining", "stopped")] == [
        "loading",
        "loaded",
        "unloading",
        "unloaded",
        "draining",
        "stopped",
    ]
    unloading = next(h for h in told if h.what == "unloading")
    assert (unloading.model, unloading.reason) == ("a", "manual")
