"""Who waits for room that the prefix cache holds is woken by whatever gives it, and never waits out the time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.plan import Amount, Footprint, Parts
from server.memory.ledger import Measured, Tenant
from server.memory.memory import Memory
from server.memory.prefix_cache import open_prefix_cache
from tests.pool.test_store_in_the_ledger import MIB, prompt, watched

BOUND_S = 5.0
MODEL = 40 * MIB


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    """Two loaded models that share what 100 MiB leave: each may keep 10 MiB."""
    prefix_cache = open_prefix_cache(64 * MIB, n_models=3, within=tmp_path)
    made = Memory("cpu", Amount(host=100 * MIB), total=Amount(host=1 << 40), prefix_cache=prefix_cache)
    for name in ("a", "b"):
        made.ledger.reserve(Tenant(name), Footprint(host=Parts(MODEL)))
    for name in ("a", "b"):
        assert made.store_for(name) is not None
        made.prefix_cache.listens(name, lambda _n_bytes: None)
    made.share_out()
    made.on_keeps("a", 10 * MIB)
    made.share_out()
    assert made.ledger.host.unreserved_bytes == 0
    return made


def exit_of_both(memory: Memory) -> None:
    memory.release("a")
    memory.release("b")


@pytest.mark.parametrize(
    ("cause", "has_room"),
    [
        (lambda m: (m.on_keeps("a", 2 * MIB), m.on_keeps("b", 2 * MIB)), True),
        (lambda m: (m.on_keeps("a", 2 * MIB), m.release("b")), True),
        (exit_of_both, True),
        (lambda m: m.release("a"), True),
        (lambda m: m.ledger.host.resize(140 * MIB), True),
        (lambda m: m.ledger.host.resize(90 * MIB), False),
        (lambda m: m.ledger.settle(Tenant("a"), host=Measured(MODEL + 10 * MIB)), False),
    ],
    ids=["confirmed", "one confirmed, one exited", "both exited", "one exited", "grown", "shrunk", "taken by a model"],
)
async def test_whatever_makes_room_or_takes_it_wakes_who_waits(
    memory: Memory, cause: Callable[[Memory], object], has_room: bool
) -> None:
    waiting = asyncio.create_task(memory.make_room(Amount(host=16 * MIB), within_s=60))
    await asyncio.sleep(0)  # it has asked the workers for less
    assert not waiting.done()

    cause(memory)

    async with asyncio.timeout(BOUND_S):
        await waiting
    assert (memory.ledger.host.unreserved_bytes >= 16 * MIB) is has_room
    memory.close()


async def test_two_loads_that_wait_both_get_what_they_were_promised(memory: Memory) -> None:
    async def load(name: str, n_bytes: int) -> None:
        await memory.make_room(Amount(host=n_bytes), within_s=60)
        memory.ledger.reserve(Tenant(name), Footprint(host=Parts(n_bytes)))

    loads = [asyncio.create_task(load(name, n * MIB)) for name, n in (("c", 4), ("d", 14))]
    await asyncio.sleep(0)

    for told in (8 * MIB, MIB):  # in the order in which the workers were asked
        memory.on_keeps("a", told)
        memory.on_keeps("b", told)

    async with asyncio.timeout(BOUND_S):
        await asyncio.gather(*loads)
    assert memory.ledger.host.reserved_bytes == 98 * MIB
    memory.close()


@pytest.mark.engine
async def test_no_eviction_holds_a_load_up(full_counts: bool) -> None:
    """Three models take turns in memory for less than two; each that leaves may owe an answer about its cache."""
    n_evictions, longest_s = 5000 if full_counts else 12, 0.0
    async with watched(1 << 30, "a") as only:
        await only.ask("a", prompt(0))
        need = only.look().reserved_bytes
    async with watched(need + 2 * MIB, "a", "b", "c") as rig:
        evicted: list[str] = []
        rig.pool.on_change.append(lambda what, _: evicted.append(what) if what == "evicted" else None)
        began = time.monotonic()
        while len(evicted) < n_evictions:
            before = time.monotonic()
            await rig.ask("abc"[rig.n % 3], prompt(rig.n % 5))
            longest_s = max(longest_s, time.monotonic() - before)
            rig.seen.clear()
        mean_s = (time.monotonic() - began) / n_evictions
    assert longest_s < max(2.0, 20 * mean_s), "a load waited for what was never told"
