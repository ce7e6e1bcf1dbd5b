"""A random walk through the scheduler, the ledger and the quarantine that tries to break their invariants."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backends.footprint import Footprint
from server.decisions import Abort, Action, Dispatch, Load, ModelState, Reject, Unload
from server.ledger import Ledger, LedgerError
from server.scheduler import LIGHT_JOBS, ModelRules, Rules, Scheduler

MODELS = ("a", "b", "c")
PARALLEL = {"a": 1, "b": 2, "c": 4}
MAX_WAIT_S, TIMEOUT_S = 60.0, 300.0
BUDGET = 100


@dataclass
class World:
    """What the pool would be: workers, books, and who has been told what."""

    workers: dict[str, set[str]] = field(default_factory=dict)
    loading: str | None = None
    unloading: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)
    ledger: Ledger = field(default_factory=lambda: Ledger(BUDGET))


class Walk(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.world = World()
        self.jobs: dict[str, tuple[str, int, float]] = {}
        self.terminals: dict[str, str] = {}
        self.waiting_loads = 0

    @initialize(max_queue=st.integers(1, 6), keep_alive_s=st.sampled_from([-1.0, 0.0, 5.0]))
    def begin(self, max_queue: int, keep_alive_s: float) -> None:
        models = [ModelRules(m, parallel=PARALLEL[m], keep_alive_s=keep_alive_s) for m in MODELS]
        self.rules = Rules(max_queue=max_queue, max_wait_s=MAX_WAIT_S, request_timeout_s=TIMEOUT_S)
        self.scheduler = Scheduler(models, self.rules)

    # The pool's part

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(job_id, model):
                    assert self.scheduler.view(model, self.now).state is ModelState.READY
                    assert model in self.world.workers, "dispatched to a model without a worker"
                    assert job_id not in self.terminals, "dispatched after its end"
                    running = self.world.workers[model]
                    assert job_id not in running
                    running.add(job_id)
                    self.check_room(model)
                case Load(model):
                    assert self.world.loading is None, "two loads at once"
                    assert model not in self.world.workers
                    self.world.loading = model
                case Unload(model, _):
                    assert self.world.workers[model] == set(), "unloads a busy model"
                    self.world.unloading.add(model)
                case Reject(job_id, code, _, retry_after_s):
                    assert retry_after_s is None or 1 <= retry_after_s <= 60
                    if code in ("queue_full", "queue_timeout", "quarantined"):
                        assert retry_after_s is not None
                    self.end(job_id, code)
                case Abort(job_id, _, _):
                    assert job_id not in self.world.aborted
                    assert any(job_id in running for running in self.world.workers.values())
                    self.world.aborted.add(job_id)

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

    @precondition(lambda self: self.world.loading is not None)
    @rule(n_bytes=st.integers(1, 120), measured=st.integers(0, 200))
    def load_succeeds(self, n_bytes: int, measured: int) -> None:
        model, self.world.loading = self.world.loading, None
        assert model is not None
        try:
            self.world.ledger.reserve(model, Footprint(weights=n_bytes, kv=0, compute=0, runtime=0))
        except LedgerError:
            actions = self.scheduler.on_gone(model, now=self.now, error=("memory_busy", "full"), strike=False)
        else:
            self.world.ledger.settle(model, measured, {})
            self.world.workers[model] = set()
            actions = self.scheduler.on_ready(model, parallel=PARALLEL[model], now=self.now)
        self.perform(actions)

    @precondition(lambda self: self.world.loading is not None)
    @rule(strike=st.booleans())
    def load_fails(self, strike: bool) -> None:
        model, self.world.loading = self.world.loading, None
        assert model is not None
        self.perform(self.scheduler.on_gone(model, now=self.now, error=("load_failed", "no"), strike=strike))

    @precondition(lambda self: self.world.workers)
    @rule(data=st.data(), code=st.sampled_from(["worker_crashed", "worker_hung"]))
    def worker_dies(self, data: st.DataObject, code: str) -> None:
        model = data.draw(st.sampled_from(sorted(self.world.workers)))
        lost = self.world.workers.pop(model)
        self.world.unloading.discard(model)
        self.world.ledger.release(model)
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
        self.world.ledger.release(model)
        self.perform(self.scheduler.on_gone(model, now=self.now))

    @rule(seconds=st.sampled_from([0.1, 1.0, 7.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.scheduler.on_tick(self.now))
        deadline = self.scheduler.next_deadline()
        assert deadline is None or deadline > self.now, "a deadline has passed and nothing was done"

    @rule(model=st.sampled_from(MODELS), load=st.booleans())
    def operator(self, model: str, load: bool) -> None:
        self.perform(self.scheduler.load(model, self.now) if load else self.scheduler.unload(model, self.now))

    # What must hold

    @invariant()
    def queue_is_bounded(self) -> None:
        if hasattr(self, "scheduler"):
            retried = sum(PARALLEL.values()) + len(MODELS) * LIGHT_JOBS
            assert self.scheduler.n_waiting <= self.rules.max_queue + retried

    @invariant()
    def books_hold(self) -> None:
        assert self.world.ledger.reserved_bytes <= BUDGET

    @invariant()
    def every_job_is_somewhere(self) -> None:
        if hasattr(self, "scheduler"):
            running = sum(len(jobs) for jobs in self.world.workers.values())
            assert self.scheduler.n_running == running
            assert len(self.jobs) == len(self.terminals) + running + self.scheduler.n_waiting

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Work is never left lying: free room of a ready model is used, and a load is under way when one is needed."""
        if not hasattr(self, "scheduler"):
            return
        for model in MODELS:
            view = self.scheduler.view(model, self.now)
            if view.state is ModelState.READY and view.waiting:
                assert view.running, "jobs wait for an idle model"
            if view.state is ModelState.UNLOADED and view.waiting and view.quarantined_until is None:
                assert self.world.loading is not None, "jobs wait for a model that nobody loads"

    def teardown(self) -> None:
        """Whatever happened: when everything calms down, every job has had its one terminal event."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(10 * len(self.jobs) + 100):
            if len(self.terminals) == len(self.jobs):
                break
            if self.world.loading is not None:
                self.load_succeeds_small()
            for model, running in list(self.world.workers.items()):
                for job_id in list(running):
                    running.discard(job_id)
                    self.end(job_id, "finished")
                    self.perform(self.scheduler.on_terminal(job_id, self.now, finished=True))
                if model in self.world.unloading:
                    self.world.unloading.discard(model)
                    del self.world.workers[model]
                    self.world.ledger.release(model)
                    self.perform(self.scheduler.on_gone(model, now=self.now))
            self.now += 1.0
            self.perform(self.scheduler.on_tick(self.now))
        assert set(self.terminals) == set(self.jobs), "jobs without an end"

    def load_succeeds_small(self) -> None:
        model, self.world.loading = self.world.loading, None
        assert model is not None
        self.world.workers[model] = set()
        self.perform(self.scheduler.on_ready(model, parallel=PARALLEL[model], now=self.now))


Walk.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
TestWalk = Walk.TestCase
