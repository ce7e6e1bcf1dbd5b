"""Who may keep how much: never more than there is room for, whatever comes, goes, or is slow to let something go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from backends.plan import Amount, Footprint, Parts
from server.memory.ledger import Ledger, LedgerError, Measured, Tenant
from server.memory.shares import Kept, Shares

BUDGET = 1000
MODELS = "abcd"


@dataclass
class Worker:
    """Fills all it may; takes its bounds one after the other, whenever it comes to that."""

    bound: int
    told: deque[int] = field(default_factory=deque)


class World:
    """The ledger, the shares, and workers that are as greedy and as slow as can be."""

    def __init__(self) -> None:
        self.ledger = Ledger(Amount(host=BUDGET))
        self.shares = Shares()
        self.workers: dict[str, Worker] = {}
        self.files: dict[str, list[Kept]] = {}
        self.cap = 600
        self.promised = 0
        """To a load that waits for workers to let go."""
        self.n = 0

    @property
    def room(self) -> int:
        return min(self.cap, max(0, self.ledger.host.free_bytes - self.promised))

    def load(self, model: str, n_bytes: int) -> None:
        if model in self.workers or n_bytes > self.ledger.host.free_bytes:
            return
        self.promised = n_bytes
        self.fit(self.room)
        try:
            self.ledger.reserve(Tenant(model), Footprint(host=Parts(n_bytes)))
        except LedgerError:
            return
        self.promised = 0
        bound, leaving = self.shares.join(model, self.room)
        self.remove(leaving)
        assert sum(file.n_bytes for file in self.files.pop(model, [])) <= bound
        self.workers[model] = Worker(bound)
        self.fit(self.room)

    def settle(self, model: str, n_bytes: int) -> None:
        if model in self.workers:
            self.ledger.settle(Tenant(model), host=Measured(n_bytes))
            self.fit(self.room)

    def confirm(self, model: str) -> None:
        worker = self.workers.get(model)
        if worker is not None and worker.told:
            worker.bound = worker.told.popleft()
            self.shares.confirm(model, worker.bound)
            self.fit(self.room)

    def exit(self, model: str, n_files: int) -> None:
        worker = self.workers.pop(model, None)
        if worker is None:
            return
        self.n += 1
        files = [
            Kept(f"{model}{self.n}.{i}", worker.bound // max(n_files, 1), (i * 7 + self.n) % 5) for i in range(n_files)
        ]
        self.files[model] = files
        self.ledger.release(Tenant(model))
        self.shares.leave(model, files)
        self.fit(self.room)

    def fit(self, room: int) -> None:
        change = self.shares.fit(room, listening=self.workers)
        self.remove(change.leaving)
        for model, bound in change.bounds.items():
            self.workers[model].told.append(bound)
        self.ledger.host.reserve_prefix_cache(self.shares.reserved_bytes)

    def remove(self, leaving: list[Kept]) -> None:
        for model, files in self.files.items():
            self.files[model] = [file for file in files if file not in leaving]

    @property
    def held(self) -> int:
        """What lies there when every worker fills the larger of what it was told and may not have heard yet."""
        live = sum(max([worker.bound, *worker.told]) for worker in self.workers.values())
        return live + sum(file.n_bytes for files in self.files.values() for file in files)

    def check(self) -> None:
        assert self.held <= self.shares.reserved_bytes == self.ledger.host.prefix_cache_bytes <= self.cap
        assert self.ledger.host.reserved_bytes + self.ledger.host.prefix_cache_bytes <= BUDGET


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["load", "load", "confirm", "confirm", "confirm", "exit", "settle"]),
        st.sampled_from(MODELS),
        st.integers(0, 700),
    ),
    max_size=60,
)


@given(ACTS)
def test_shares_hold_whatever_comes_and_goes(acts: list[tuple[str, str, int]]) -> None:
    world = World()
    for what, model, number in acts:
        if what == "load":
            world.load(model, number)
        elif what == "confirm":
            world.confirm(model)
        elif what == "settle":
            world.settle(model, number)
        else:
            world.exit(model, number % 4)
        world.check()
    world.promised = 0
    world.fit(world.room)
    for _ in range(70):
        for model in MODELS:
            world.confirm(model)
    world.check()
    assert not any(worker.told for worker in world.workers.values())
    bounds = {worker.bound for worker in world.workers.values()}
    assert len(bounds) <= 1, "loaded models have equal shares"
    if bounds:
        left = world.room - world.ledger.host.prefix_cache_bytes
        assert left < len(world.workers), "nothing is left unused"


def test_a_model_that_needs_the_room_gets_it_when_the_others_have_let_go() -> None:
    world = World()
    world.load("a", 500)
    assert world.workers["a"].bound == 500
    world.load("b", 450)
    assert "b" not in world.workers, "its bytes are still kept by a"
    assert list(world.workers["a"].told) == [50]

    world.confirm("a")
    world.load("b", 450)

    assert "b" in world.workers
    assert world.ledger.host.reserved_bytes == 950


def test_a_model_that_took_more_than_it_reserved_has_it_in_full_once_prefixes_have_left() -> None:
    world = World()
    world.load("a", 500)
    world.settle("a", 700)
    share = world.ledger.host.holding(Tenant("a"))
    assert share is not None
    assert (share.reserved_bytes, share.unreserved_bytes, world.ledger.host.over_bytes) == (500, 200, 0)
    world.check()

    world.confirm("a")

    share = world.ledger.host.holding(Tenant("a"))
    assert share is not None
    assert (share.reserved_bytes, share.unreserved_bytes) == (700, 0)
    assert world.ledger.host.prefix_cache_bytes == 300
    world.check()


def test_what_is_worth_least_per_byte_leaves_first() -> None:
    shares = Shares()
    shares.join("a", 100)
    shares.leave("a", [Kept("dear", 40, 3.0), Kept("cheap", 40, 1.0), Kept("fair", 20, 2.0)])

    assert [file.key for file in shares.fit(70, listening=()).leaving] == ["cheap"]
    assert [file.key for file in shares.fit(50, listening=()).leaving] == ["fair"]
    assert shares.reserved_bytes == 40


def test_a_smaller_budget_counts_at_once_for_who_listens() -> None:
    shares = Shares()
    assert shares.join("a", 100) == (100, [])
    assert shares.fit(30, listening="a").bounds == {"a": 30}
    assert shares.fit(30, listening="a").bounds == {}
    assert shares.reserved_bytes == 100
    assert shares.fit(60, listening="a").bounds == {}, "it holds 100 until it says otherwise"
    shares.confirm("a", 30)
    assert shares.reserved_bytes == 30
    assert shares.fit(60, listening="a").bounds == {"a": 60}
