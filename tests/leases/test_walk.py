"""A random walk over leases, loads, jobs, a training job and the hours: the books are checked at each change."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import pytest

from backends.messages import Failed
from backends.plan import Footprint, Parts
from server.asker import ASKER, Asker
from server.memory import hours, memory
from server.memory.ledger import Tenant
from server.pool.leases import LeaseRefusedError, LeaseStatus
from server.pool.room import NoRoomError
from tests.many.conftest import MIB, Fleet, FleetMaker, fleet, ok
from tests.pool.conftest import until

__all__ = ["fleet"]

SIZES = {"a": 300, "b": 250, "c": 120, "d": 60, "pin": 40}
BUDGET, BY_DAY = 700 * MIB, 420 * MIB
STALLED_S = 60
"""Without any job that ends and any model that comes or goes."""
GOES_ON = ("loading", "loaded", "unloaded")
MOST_MOVES = 20
"""Of models, for each job and model that there is when all rest: more are models that drive each other out for ever."""
PASSING = ("cancelled", "memory_busy", "queue_timeout", "queue_full")
"""How a job may end that was not answered: its client went, or others held the memory for too long."""


class Books:
    """The ledger's, looked at after each change of it."""

    def __init__(self, made: Fleet) -> None:
        self._ledger = made.pool._parts.memory.ledger
        self._before = (0, self._ledger.host.budget_bytes)
        self.wrong: list[tuple[int, int, int]] = []
        self._ledger.on_change.append(self.check)

    def check(self) -> None:
        """No byte is reserved beyond the budget; where that has shrunk, nothing more is reserved until it fits."""
        account = self._ledger.host
        reserved, budget = account.reserved_bytes + account.prefix_cache_bytes, account.budget_bytes
        before, budget_before = self._before
        shrunk = budget < budget_before
        if reserved > budget and not shrunk and reserved > before:
            self.wrong.append((reserved, budget, before))
        self._before = (reserved, budget)

    def held(self, lease: LeaseStatus) -> int:
        holding = self._ledger.host.holding(Tenant(lease.id, "lease"))
        assert holding is not None, lease
        return holding.reserved_bytes


class Walk:
    """What clients, programs and the clock do to one pool."""

    def __init__(self, made: Fleet, seed: int) -> None:
        self.made, self.books, self.chance = made, Books(made), random.Random(seed)
        self.minute = 20 * 60
        self.tasks: set[asyncio.Task[None]] = set()
        self.lent = self.answered = self.trained = 0
        self.refusals: list[str] = []
        self.bag: list[Callable[[], Awaitable[None]]] = []
        self.steps: list[Callable[[], Awaitable[None]]] = [
            *[self.ask] * 4, self.ask_in_the_background, *[self.lend] * 3, self.lend_and_go, self.lend_for_a_moment,
            self.renew, *[self.give_back] * 3, self.an_hour_passes, *[self.train] * 2, self.unload,
        ]  # fmt: skip

    def begin(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        return task

    async def step(self) -> None:
        if not self.bag:
            self.bag = self.chance.sample(self.steps, len(self.steps))
        await self.bag.pop()()
        await asyncio.sleep(self.chance.choice((0, 0, 0.01, 0.05)))
        assert self.books.wrong == []
        told = self.made.pool.status().memory
        assert told.lent_bytes == sum(lease.bytes for lease in self.made.pool.leases.all)
        assert all(self.books.held(lease) == lease.bytes for lease in self.made.pool.leases.all)
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.discard(task)
            task.result()

    async def ask(self) -> None:
        self.begin(self._answer(self.chance.choice(list(SIZES))))

    async def ask_in_the_background(self) -> None:
        token = ASKER.set(Asker("line", background=True))
        self.begin(self._answer(self.chance.choice(list(SIZES))))
        ASKER.reset(token)

    async def _answer(self, model: str) -> None:
        """Jobs that have time wait as long as the memory is lent; one that waits for ever shows when all rest."""
        text = self.chance.choice(("hi", "!slow 5 10", "!slow 10 30"))
        (last,) = [event async for event in self.made.submit(model, text)][-1:]
        assert not isinstance(last, Failed) or last.code in PASSING, last
        self.answered += not isinstance(last, Failed)

    async def lend(self, seconds: float = 600) -> None:
        self.begin(self._lend(self.chance.randrange(1, 500) * MIB, seconds))

    async def lend_for_a_moment(self) -> None:
        await self.lend(0.05)

    async def lend_and_go(self) -> None:
        """A client that hangs up before it has its lease."""
        task = asyncio.ensure_future(self.made.pool.leases.lend(300 * MIB, seconds=600, name="gone"))
        await asyncio.sleep(self.chance.choice((0, 0.01, 0.1)))
        if not task.cancel():
            await asyncio.gather(task, return_exceptions=True)
            return
        await asyncio.gather(task, return_exceptions=True)

    async def _lend(self, n_bytes: int, seconds: float) -> None:
        try:
            await self.made.pool.leases.lend(n_bytes, seconds=seconds, name="walk")
        except LeaseRefusedError as refused:
            self.refusals.append(str(refused))
        else:
            self.lent += 1

    async def renew(self) -> None:
        for lease in self.made.pool.leases.all[:1]:
            assert self.made.pool.leases.renew(lease.id, 300).seconds_left > 299

    async def give_back(self) -> None:
        for lease in self.made.pool.leases.all[:1]:
            self.made.pool.leases.end(lease.id)

    async def an_hour_passes(self) -> None:
        self.minute = self.chance.choice((10, 20)) * 60
        await self.made.pool._parts.memory.look()

    async def train(self) -> None:
        """A job that leaves soon after it is told to."""
        training = self.made.pool.training
        if training.held:
            training.go()
            return
        loop = asyncio.get_running_loop()

        def leave() -> None:
            loop.call_later(0.02, lambda: training.go() if training.held else None)

        footprint = Footprint(host=Parts(weights=self.chance.randrange(20, 150) * MIB))
        try:
            await training.enter("job", footprint, leave)
        except NoRoomError:
            return
        self.trained += 1

    async def unload(self) -> None:
        self.begin(self.made.pool.unload(self.chance.choice(list(SIZES))))

    def _n_moves(self) -> int:
        return sum(name in GOES_ON for name, _ in self.made.happened)

    async def rest(self) -> None:
        """Everything ends, and what is lent comes back, as long as that takes: jobs wait for loads, one at a time."""
        self.minute = 20 * 60
        await self.made.pool._parts.memory.look()
        before, most = None, self._n_moves() + MOST_MOVES * (len(self.tasks) + len(SIZES))
        async with asyncio.timeout(STALLED_S) as stalled:
            while self.tasks or self.made.pool.leases.all:
                await self.give_back()
                await asyncio.sleep(0.01)
                for task in [task for task in self.tasks if task.done()]:
                    self.tasks.discard(task)
                    task.result()
                now = len(self.tasks), self._n_moves()
                assert now[1] <= most, f"{len(self.tasks)} are left"
                if now != before:
                    before = now
                    stalled.reschedule(asyncio.get_running_loop().time() + STALLED_S)
        if self.made.pool.training.held:
            self.made.pool.training.go()


async def test_whatever_comes_nothing_is_over_budget_and_nothing_is_lost(
    fleet: FleetMaker, monkeypatch: pytest.MonkeyPatch, full_counts: bool
) -> None:
    walks: list[Walk] = []

    def localtime() -> SimpleNamespace:
        minute = walks[0].minute if walks else 20 * 60
        return SimpleNamespace(tm_hour=minute // 60, tm_min=minute % 60)

    monkeypatch.setattr(hours, "time", SimpleNamespace(localtime=localtime))
    monkeypatch.setattr(memory, "LOOK_EVERY_S", 0.05)
    section = {"prefix_cache": 60 * MIB, "hours": {"09:00-18:00": str(BY_DAY)}}
    made = await fleet(
        SIZES,
        budget_mib=BUDGET // MIB,
        each={"pin": {"pinned": True}},
        sections={"memory": section, "scheduler": {"template_process": False, "max_wait_s": 2.0}},
    )
    walk = Walk(made, time.time_ns() if full_counts else 23)
    walks.append(walk)
    ends_at = time.monotonic() + 60
    for _ in range(10**6 if full_counts else 6 * len(walk.steps)):
        await walk.step()
        if time.monotonic() > ends_at:
            break
    await walk.rest()

    assert walk.lent
    assert walk.refusals
    assert all(" cannot be lent: of " in told for told in walk.refusals)
    assert walk.answered
    assert walk.trained
    assert made.pool.leases.all == []
    for model in SIZES:
        assert ok(await made.ask(model, "hi"))
    await until(lambda: made.pool.status().memory.reserved_bytes <= BUDGET)
