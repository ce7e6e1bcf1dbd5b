"""A random walk through the scheduler and the quarantine, over books with a budget, that tries to break them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.plan import Amount
from server.scheduling.decisions import (
    Abort,
    Action,
    CancelLoad,
    Dispatch,
    Drain,
    Forget,
    Grow,
    Load,
    ModelState,
    Reject,
    Stay,
    Unload,
)
from server.scheduling.eviction import helps
from server.scheduling.scheduler import LIGHT_JOBS, ModelRules, Rules, Scheduler, SwapRules
from tests.scheduler.fake_budget import FakeBudget, amount

MODELS = ("a", "b", "c", "huge", "pin")
PARALLEL = {"a": 1, "b": 2, "c": 4, "huge": 1, "pin": 2}
SIZES = {"a": 40, "b": 50, "c": 70, "huge": 200, "pin": 25}
MAX_WAIT_S, TIMEOUT_S = 60.0, 300.0
BUDGET, LEAST_BUDGET = 100, 60
BEGINS, CONTEXTS = 8, (16, 32, 64)


def grown_size(size: int | Amount, context: int) -> Amount:
    """What a model takes with a longer context: a tenth more for each time of what it begins with."""
    more, plain = context // BEGINS, amount(size)
    return plain + Amount(plain.device * more // 10, plain.host * more // 10)


@dataclass
class World:
    """What the pool would be: workers, a budget, and who has been told what."""

    books: FakeBudget
    workers: dict[str, set[str]] = field(default_factory=dict)
    loading: str | None = None
    cancelled: list[str] = field(default_factory=list)
    """Loads that were given up, whose workers are not gone yet."""
    unloading: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)


class Walk(RuleBasedStateMachine):
    """On a machine without a card."""

    sizes: Mapping[str, int | Amount] = SIZES
    budget: int | Amount = BUDGET
    budgets: Sequence[int | Amount] = (LEAST_BUDGET, 75, 90, BUDGET, BUDGET)
    """What it changes to now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.world = World(FakeBudget(self.budget, self.sizes, frozenset({"pin"})))
        self.jobs: dict[str, tuple[str, int, float]] = {}
        self.terminals: dict[str, str] = {}
        self.waited: dict[str, float] = {}
        """Of queued jobs: seconds in which no room was being made for their model."""
        self.asked_to_leave: set[str] = set()
        self.here = set(MODELS)
        """Those that the scheduler knows."""
        self.retired: set[str] = set()
        self.context = dict.fromkeys(MODELS, BEGINS)
        """Tokens that each model was loaded with."""
        self.stayed: set[str] = set()
        """Jobs that run with the context there is."""
        for model, size in self.sizes.items():
            for context in CONTEXTS:
                self.world.books.grown[model, context] = grown_size(size, context)

    @initialize(max_queue=st.integers(1, 6), keep_alive_s=st.sampled_from([-1.0, 0.0, 5.0]))
    def begin(self, max_queue: int, keep_alive_s: float) -> None:
        self.keep_alive_s = keep_alive_s
        models = [self.rules_of(m) for m in MODELS]
        swaps = SwapRules(max_wait_s=MAX_WAIT_S)
        self.limits = Rules(max_queue=max_queue, request_timeout_s=TIMEOUT_S, swaps=swaps)
        self.scheduler = Scheduler(models, self.limits, self.world.books)

    def rules_of(self, model: str) -> ModelRules:
        return ModelRules(model, parallel=PARALLEL[model], keep_alive_s=self.keep_alive_s, pinned=model == "pin")

    # The pool's part

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(job_id, model):
                    assert self.scheduler.view(model, self.now).state in (ModelState.READY, ModelState.DRAINING)
                    assert model in self.world.workers, "dispatched to a model without a worker"
                    assert job_id not in self.terminals, "dispatched after its end"
                    running = self.world.workers[model]
                    assert job_id not in running
                    running.add(job_id)
                    self.check_room(model)
                case Load(model, smaller_by, context):
                    assert self.world.loading is None, "two loads at once"
                    assert model not in self.world.workers
                    self.world.loading = model
                    self.context[model] = context or BEGINS
                    if isinstance(self.world.books.need(model, smaller_by=0, context=context), Amount):
                        self.world.books.reserve(model, smaller_by=smaller_by, context=context)
                case CancelLoad(model):
                    assert self.world.loading == model
                    self.world.loading = None
                    self.world.cancelled.append(model)
                case Drain(model, reason, _):
                    assert self.world.workers[model], "drains what has nothing to finish"
                    self.may_leave(model, reason)
                case Unload(model, reason, _):
                    assert self.world.workers[model] == set(), "unloads a busy model"
                    self.may_leave(model, reason)
                    self.world.unloading.add(model)
                case Grow(job_id, model, context, running):
                    assert context > self.context[model], "grows to what it has"
                    assert not self.scheduler.draining
                    assert running == len(self.world.workers[model])
                    self.asked_to_leave.add(model)  # a pinned model comes back, larger
                case Stay(job_id, model, _, reason):
                    assert reason
                    self.world.workers[model].add(job_id)
                    self.stayed.add(job_id)
                case Reject(job_id, code, _, retry_after_s):
                    assert retry_after_s is None or 1 <= retry_after_s <= 60
                    if code in ("queue_full", "queue_timeout", "quarantined", "memory_busy", "out_of_memory"):
                        assert retry_after_s is not None or code == "out_of_memory"
                    assert code != "cannot_fit" or any(
                        not amount(self.sizes[self.jobs[job_id][0]]).within(amount(budget)) for budget in self.budgets
                    )
                    self.end(job_id, code)
                case Forget(model):
                    assert model in self.retired, "forgets what is configured"
                    assert model not in self.world.workers
                    assert model not in {self.world.loading, *self.world.cancelled}
                    assert not self.world.books.held(model), "forgets who holds bytes"
                    self.here.discard(model)
                    self.retired.discard(model)
                case Abort(job_id, _, _):
                    assert job_id not in self.world.aborted
                    assert any(job_id in running for running in self.world.workers.values())
                    self.world.aborted.add(job_id)

    def may_leave(self, model: str, reason: str) -> None:
        assert model != "pin" or model in self.asked_to_leave, f"a pinned model leaves for {reason}"

    def end(self, job_id: str, how: str) -> None:
        assert job_id not in self.terminals, f"second terminal event: {self.terminals[job_id]}, {how}"
        self.terminals[job_id] = how

    def check_room(self, model: str) -> None:
        parallel = PARALLEL[model]
        sizes = [self.jobs[job_id][1] for job_id in self.world.workers[model]]
        assert sum(min(n, parallel) for n in sizes) <= parallel, "more sequences than room"
        assert sum(1 for n in sizes if n == 0) <= LIGHT_JOBS

    # What happens

    @rule(
        model=st.sampled_from(MODELS),
        sequences=st.sampled_from([0, 1, 1, 1, 2, 4, 9]),
        priority=st.sampled_from([0, 0, 0, 3, -3]),
    )
    def submit(self, model: str, sequences: int, priority: int) -> None:
        if model not in self.here:
            return
        job_id = f"j{len(self.jobs)}"
        self.jobs[job_id] = (model, sequences, self.now)
        self.perform(self.scheduler.submit(job_id, model, sequences=sequences, priority=priority, now=self.now))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.jobs:
            job_id = data.draw(st.sampled_from(sorted(self.jobs)))
            self.perform(self.scheduler.cancel(job_id, self.now))

    @precondition(lambda self: any(self.world.workers.values()))
    @rule(data=st.data(), finished=st.booleans())
    def job_ends(self, data: st.DataObject, finished: bool) -> None:
        model = data.draw(st.sampled_from(sorted(m for m, jobs in self.world.workers.items() if jobs)))
        job_id = data.draw(st.sampled_from(sorted(self.world.workers[model])))
        self.world.workers[model].discard(job_id)
        self.end(job_id, "finished" if finished else "failed")
        self.perform(self.scheduler.on_terminal(job_id, self.now, finished=finished))

    @precondition(lambda self: any(self.world.workers.values()))
    @rule(data=st.data(), context=st.sampled_from(CONTEXTS), has_room=st.booleans())
    def context_is_too_short(self, data: st.DataObject, context: int, has_room: bool) -> None:
        """A worker ends a job whose prompt, or whose answer, needs more than there is."""
        model = data.draw(st.sampled_from(sorted(m for m, jobs in self.world.workers.items() if jobs)))
        job_id = data.draw(st.sampled_from(sorted(self.world.workers[model])))
        if self.jobs[job_id][1] == 0 or job_id in self.stayed | self.world.aborted or context <= self.context[model]:
            return
        self.world.workers[model].discard(job_id)
        least = self.context[model] if has_room else context
        self.perform(self.scheduler.on_too_long(job_id, self.now, least=least, wanted=context))

    @precondition(lambda self: self.world.loading is not None)
    @rule()
    def load_succeeds(self) -> None:
        model, self.world.loading = self.world.loading, None
        assert model is not None
        if model not in self.world.books.holders:
            actions = self.scheduler.on_gone(model, now=self.now, error=("memory_busy", "no"), strike=False)
        else:
            self.world.workers[model] = set()
            actions = self.scheduler.on_ready(
                model, parallel=PARALLEL[model], now=self.now, context=self.context[model]
            )
        self.perform(actions)

    @precondition(lambda self: self.world.loading is not None)
    @rule(strike=st.booleans(), code=st.sampled_from(["load_failed", "out_of_memory", "memory_busy"]))
    def load_fails(self, strike: bool, code: str) -> None:
        model, self.world.loading = self.world.loading, None
        assert model is not None
        self.world.books.holders.pop(model, None)
        self.perform(self.scheduler.on_gone(model, now=self.now, error=(code, "no"), strike=strike))  # type: ignore[arg-type]

    @precondition(lambda self: self.world.cancelled)
    @rule()
    def cancelled_load_is_gone(self) -> None:
        model = self.world.cancelled.pop(0)
        self.world.books.holders.pop(model, None)
        self.perform(self.scheduler.on_gone(model, now=self.now))

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), code=st.sampled_from(["worker_crashed", "worker_hung"]))
    def worker_dies(self, data: st.DataObject, code: str) -> None:
        model = data.draw(st.sampled_from(sorted(self.world.workers)))
        lost = self.world.workers.pop(model)
        self.world.unloading.discard(model)
        self.world.books.release(model)
        retry = data.draw(st.sets(st.sampled_from(sorted(lost)))) if lost and code == "worker_crashed" else set()
        for job_id in lost - retry:
            self.end(job_id, code)
        self.world.aborted -= lost
        self.perform(self.scheduler.on_gone(model, now=self.now, error=(code, "died"), retry=frozenset(retry)))  # type: ignore[arg-type]

    @precondition(lambda self: self.world.unloading)
    @rule(data=st.data())
    def worker_stops(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(sorted(self.world.unloading)))
        self.world.unloading.discard(model)
        assert self.world.workers.pop(model) == set()
        self.world.books.release(model)
        self.perform(self.scheduler.on_gone(model, now=self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for ticket in self.scheduler._tickets.values():
            if ticket.queued and self.scheduler._models[ticket.model].claimed_at is None:
                self.waited[ticket.job_id] = self.waited.get(ticket.job_id, 0.0) + seconds
        self.perform(self.scheduler.on_tick(self.now))
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline has passed and nothing was done"
        for ticket in self.scheduler._tickets.values():
            if ticket.queued and not ticket.retried and self.scheduler._models[ticket.model].claimed_at is None:
                assert self.waited.get(ticket.job_id, 0.0) < MAX_WAIT_S, "waits past the bound"

    @rule(number=st.integers(0, 4))
    def budget_changes(self, number: int) -> None:
        self.world.books.budget = self.budgets[number]
        self.perform(self.scheduler.on_tick(self.now))
        if over := self.world.books.over:
            going = (*self.world.unloading, *self.world.cancelled)
            leaving = sum((self.world.books.held(m) for m in going), Amount())
            idle = [m for m, jobs in self.world.workers.items() if not jobs and m not in self.world.unloading]
            draining = [m for m in self.here if self.scheduler.view(m, self.now).state is ModelState.DRAINING]
            still = over - leaving
            idle = [m for m in idle if helps(self.world.books.held(m), still)]
            assert over.within(leaving) or set(idle) <= {"pin"} or draining, "idle models hold too much"

    @rule(model=st.sampled_from(MODELS), load=st.booleans())
    def operator(self, model: str, load: bool) -> None:
        if model not in self.here - self.retired:
            return
        if not load:
            self.asked_to_leave.add(model)
        self.perform(self.scheduler.load(model, self.now) if load else self.scheduler.unload(model, self.now))

    @rule(model=st.sampled_from(MODELS), how=st.sampled_from(["reload", "rules", "retire", "back"]))
    def configuration(self, model: str, how: str) -> None:
        """Models come, change and go: whatever was accepted has its end as ever."""
        self.asked_to_leave.add(model)
        if model not in self.here:
            if how == "back":
                self.here.add(model)
                self.scheduler.add(self.rules_of(model))
        elif how == "retire":
            self.retired.add(model)
            self.perform(self.scheduler.retire(model, self.now))
        elif how == "back" or model not in self.retired:
            self.retired.discard(model)
            before = self.scheduler.state(model)
            self.perform(self.scheduler.change(self.rules_of(model), self.now, reload=how != "rules"))
            if how == "reload" and before is ModelState.READY:
                assert self.scheduler.state(model) in (ModelState.DRAINING, ModelState.UNLOADING)

    # What must hold

    @invariant()
    def queue_is_bounded(self) -> None:
        if hasattr(self, "scheduler"):
            retried = sum(PARALLEL.values()) + len(MODELS) * LIGHT_JOBS
            assert self.scheduler.n_waiting <= self.limits.max_queue + retried

    @invariant()
    def books_hold(self) -> None:
        assert self.world.books.all_held.within(amount(self.budget))

    @invariant()
    def every_job_is_somewhere(self) -> None:
        if hasattr(self, "scheduler"):
            running = sum(len(jobs) for jobs in self.world.workers.values())
            assert self.scheduler.n_running == running
            assert len(self.jobs) == len(self.terminals) + running + self.scheduler.n_waiting

    @invariant()
    def none_waits_for_nothing(self) -> None:
        """Work is never left lying: free room is used, and who waits without a reason has a time to look again."""
        if not hasattr(self, "scheduler"):
            return
        for model in self.here:
            view = self.scheduler.view(model, self.now)
            idle = view.state is ModelState.READY and not view.running
            assert model not in self.retired or not idle or view.waiting, "a retired model stays with nothing to do"
            if view.state is ModelState.READY and view.waiting:
                assert view.running, "jobs wait for an idle model"
            if view.state is ModelState.UNLOADED and view.waiting and view.quarantined_until is None:
                moving = self.world.loading or self.world.unloading or self.world.cancelled
                busy = any(self.world.workers.values())
                assert moving or busy or self.scheduler._swaps.look_at is not None, (
                    "waits for a model that is never loaded"
                )

    def teardown(self) -> None:
        """Whatever happened: when everything calms down, every job has had its one terminal event."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10 * len(self.jobs) + 100):
            if len(self.terminals) == len(self.jobs):
                break
            if self.world.loading is not None:
                self.load_succeeds()
            if self.world.cancelled:
                self.cancelled_load_is_gone()
            for model, running in list(self.world.workers.items()):
                for job_id in list(running):
                    running.discard(job_id)
                    self.end(job_id, "finished")
                    self.perform(self.scheduler.on_terminal(job_id, self.now, finished=True))
                if model in self.world.unloading:
                    self.world.unloading.discard(model)
                    del self.world.workers[model]
                    self.world.books.release(model)
                    self.perform(self.scheduler.on_gone(model, now=self.now))
            self.now += 1.0
            self.perform(self.scheduler.on_tick(self.now))
        states = {m: self.scheduler.view(m, self.now) for m in self.here}
        assert set(self.terminals) == set(self.jobs), f"jobs without an end: {states}"


class WalkOnACard(Walk):
    """With a card whose memory is short for some models, and host memory that is short for others."""

    sizes: Mapping[str, int | Amount] = {
        "a": Amount(40, 5),
        "b": Amount(50, 30),
        "c": Amount(0, 45),
        "huge": Amount(200, 10),
        "pin": Amount(25, 12),
    }
    budget: int | Amount = Amount(100, 60)
    budgets: Sequence[int | Amount] = (
        Amount(60, 60),
        Amount(100, 45),
        Amount(75, 50),
        Amount(100, 60),
        Amount(100, 60),
    )


def limits(max_examples: int) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )


Walk.TestCase.settings = limits(1000)
WalkOnACard.TestCase.settings = limits(300)
TestWalk = Walk.TestCase
TestWalkOnACard = WalkOnACard.TestCase
