"""Other programs that take more and more of a card: when room is held back for them, how much, and until when."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import pairwise
from typing import Any

import pytest

from backends.plan import Footprint, Parts
from server.memory import gpu, memory, neighbours
from server.memory.ledger import Tenant
from server.memory.memory import Memory
from server.memory.neighbours import Neighbours
from server.memory.opening import DeviceError, open_memory
from server.settings.sections import MemorySection
from tests.pool.conftest import until
from tests.pool.test_memory import Card

MIB, GIB = 2**20, 2**30
CARD = 12 * GIB


def told(neighbours: Neighbours, looks: list[tuple[float, float]]) -> list[float]:
    """The headroom in GiB behind each look: seconds, and GiB that others hold."""
    found = []
    for now, held_gib in looks:
        neighbours.look(now, int(held_gib * GIB))
        found.append(neighbours.headroom_bytes / GIB)
    return found


def test_growth_that_lasts_is_given_as_much_again_as_it_has_taken():
    looks = [(0, 1.0), (2, 1.0), (4, 1.5), (4.5, 1.5), (5, 2.0), (5.5, 3.0), (6, 9.0)]
    assert told(Neighbours(CARD, None), looks) == [0, 0, 0, 0, 1.0, 2.0, 6.0]  # never more than half the card


def test_a_configured_headroom_is_as_large_as_it_says():
    neighbours = Neighbours(CARD, 4 * GIB, reserve_bytes=GIB)
    assert told(neighbours, [(0, 1), (2, 1.3), (3, 1.3), (4, 2)]) == [0, 0, 4, 4]
    assert told(Neighbours(CARD, 9 * GIB), [(0, 1), (2, 1.3), (3, 1.3)])[-1] == 9
    assert neighbours.held_back_bytes == 3 * GIB
    assert told(Neighbours(CARD, 0), [(0, 1), (2, 2), (4, 3), (6, 4)]) == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "looks",
    [
        [(t, 1 + 0.1 * (t % 4 == 0)) for t in range(0, 120, 2)],  # a browser
        [(0, 1), (2, 5), (2.5, 1), (4.5, 1), (6.5, 5), (7, 1)],  # a driver that gives memory back late
        [(t, 1 + t / 3600) for t in range(0, 7200, 2)],  # a leak, a GiB an hour
        [(t, 5 - t / 10) for t in range(0, 40, 2)],  # one that leaves
    ],
    ids=["a browser", "a late driver", "a leak", "leaving"],
)
def test_what_does_not_grow_moves_nothing(looks: list[tuple[float, float]]):
    assert max(told(Neighbours(CARD, None), looks)) == 0


def test_the_room_is_held_while_a_program_grows_by_steps_and_given_back_once():
    """Every 20 s a GiB more for a minute, then none: one beginning, one end, and never less meanwhile."""
    looks = [(t / 2, 1.0 + min(3, t // 40)) for t in range(400)]
    headroom = told(Neighbours(CARD, None), looks)
    changes = [(before, after) for before, after in pairwise(headroom) if before != after]
    assert changes == [(0, 1), (1, 2), (2, 3), (3, 0)]
    assert [t / 2 for t in range(400) if headroom[t]][-1] == pytest.approx(60 + 10 + 60, abs=2)


def test_a_program_that_ends_gives_the_room_back_at_once():
    neighbours = Neighbours(CARD, None)
    assert told(neighbours, [(0, 1), (2, 3), (3, 3), (4, 3), (6, 1.0)]) == [0, 0, 2, 2, 0]
    assert not neighbours.uneasy


def test_growth_that_came_while_nothing_could_be_looked_at_counts():
    neighbours = Neighbours(CARD, None)
    assert told(neighbours, [(0, 1), (60, 3), (61, 3)]) == [0, 0, 2]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    """11 of 12 GiB are free; who looks does so often, and believes at once."""
    for module, name in ((memory, "LOOK_EVERY_S"), (memory, "EVERY_S"), (neighbours, "_LASTS_S")):
        monkeypatch.setattr(module, name, 0.0)
    return Card(monkeypatch)


@pytest.mark.parametrize(
    ("section", "budget_gib"), [({"headroom": 0}, 8), ({"budget": 10 * GIB}, 10), ({}, 7), ({"headroom": GIB}, 8)]
)
async def test_only_an_automatic_budget_gives_way_and_only_where_it_is_to(
    card: Card, section: dict[str, Any], budget_gib: int
) -> None:
    made = await open_memory(MemorySection(reserve=GIB, **section))
    for taken in (0, 1, 2):
        card.free = (11 - taken) * GIB
        await made.look()
    await made.look()
    assert made.account.budget_bytes == budget_gib * GIB


async def test_a_program_that_takes_or_keeps_what_it_was_lent_does_not_grow(
    card: Card,
) -> None:
    made = await open_memory(MemorySection(reserve=GIB))
    lease = Tenant("lease_1", "lease")
    made.ledger.reserve(lease, Footprint(device=Parts(further={"lease": 4 * GIB})))
    made.lent(4 * GIB)
    for taken in (0, 2, 4, 4):
        card.free = (11 - taken) * GIB
        await made.look()
        assert made.neighbours.headroom_bytes == 0
    made.ledger.release(lease)
    made.lent(0)
    for _ in range(3):
        await made.look()
    assert (made.neighbours.headroom_bytes, made.account.budget_bytes) == (0, 6 * GIB)


async def test_a_headroom_beyond_the_card_is_refused(card: Card) -> None:
    with pytest.raises(DeviceError, match="headroom = 13 GiB, but Fake 4070 has 12 GiB"):
        await open_memory(MemorySection(headroom=13 * GIB))


@pytest.mark.parametrize(("section", "n_told"), [({"device": "cpu", "headroom": GIB}, 1), ({"device": "cpu"}, 0)])
async def test_a_headroom_that_can_hold_nothing_back_is_told_once(caplog, section: dict[str, Any], n_told: int):
    (await open_memory(MemorySection(**section))).close()
    assert caplog.text.count("headroom_unused reason='no card is used'") == n_told


async def test_a_driver_that_stops_answering_is_told_once_and_ends_with_the_server(
    card: Card, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    made = await open_memory(MemorySection())
    n_asked = 0

    def broken() -> gpu.GpuMemory:
        nonlocal n_asked
        n_asked += 1
        raise OSError("the driver is gone")

    async with looking(made):
        await until(card.asked.is_set)
        monkeypatch.setattr(gpu, "_query", broken)
        await until(lambda: n_asked > 5)
    assert caplog.text.count("card_unread") == 1


async def test_a_look_that_ends_as_it_is_cancelled_is_cancelled(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()

    async def asked() -> None:
        await gpu.answer(lambda: loop.call_soon_threadsafe(task.cancel), within_s=60)
        raise AssertionError("the cancellation is lost")

    task = asyncio.create_task(asked())
    with pytest.raises(asyncio.CancelledError):
        await task


@contextlib.asynccontextmanager
async def looking(made: Memory):
    """As long as a server does."""
    task = asyncio.create_task(made.keep_looking())
    try:
        yield
    finally:
        task.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait({task})
