"""The scheduler in simulated time: clients that ask, read their answer and ask again, and loads that take seconds."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from backends.plan import Amount
from server.scheduling.decisions import Action, CancelLoad, Dispatch, Load, Reject, Unload
from server.scheduling.scheduler import ModelRules, Rules, Scheduler, SwapRules
from server.scheduling.swaps import Policy
from tests.scheduler.fake_budget import FakeBudget


@dataclass
class Simulation:
    """One run; times in seconds."""

    sizes: Mapping[str, int | Amount]
    budget: int | Amount
    clients: Sequence[Iterator[str]]
    """The models that each client asks for, one after the other."""
    load_s: Mapping[str, float]
    job_s: float = 0.05
    unload_s: float = 0.02
    think_s: float = 0.002
    parallel: int = 2
    policy: Policy = "collate"
    max_wait_s: float = 60.0
    n_requests: int = 10**9
    until_s: float = 1e9
    now: float = 0.0
    n_loads: int = 0
    waits: dict[str, list[float]] = field(default_factory=dict)
    """Model -> from each request to its end."""
    rejected: list[str] = field(default_factory=list)

    def run(self) -> Simulation:
        """Until every client has had its answers."""
        rules = Rules(max_queue=1000, swaps=SwapRules(max_wait_s=self.max_wait_s, policy=self.policy))
        self.books = FakeBudget(self.budget, dict(self.sizes))
        self.scheduler = Scheduler([ModelRules(m, parallel=self.parallel) for m in self.sizes], rules, self.books)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = self.n_sent = 0
        self.jobs: dict[str, tuple[int, str, float]] = {}
        for client in range(len(self.clients)):
            self.after(client * 0.001, lambda client=client: self.send(client))  # type: ignore[misc]
        while self.jobs or self.events:
            tick = self.scheduler.next_deadline()
            if self.events and (tick is None or self.events[0][0] <= tick):
                self.now, _, happen = heapq.heappop(self.events)
                happen()
            else:
                assert tick is not None, "all wait and nothing happens"
                if not self.jobs:
                    break
                self.now = max(self.now, tick)
                self.perform(self.scheduler.on_tick(self.now))
        return self

    def after(self, seconds: float, happen: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, happen))

    def send(self, client: int) -> None:
        if self.n_sent >= self.n_requests or self.now >= self.until_s:
            return
        model = next(self.clients[client], None)
        if model is None:
            return
        self.n_sent += 1
        job_id = f"j{self.n_sent}"
        self.jobs[job_id] = (client, model, self.now)
        self.perform(self.scheduler.submit(job_id, model, sequences=1, now=self.now))

    def end(self, job_id: str) -> None:
        client, model, sent_at = self.jobs.pop(job_id)
        self.waits.setdefault(model, []).append(self.now - sent_at)
        self.after(self.think_s, lambda: self.send(client))

    def finish(self, job_id: str) -> None:
        self.end(job_id)
        self.perform(self.scheduler.on_terminal(job_id, self.now, finished=True))

    def ready(self, model: str) -> None:
        self.perform(self.scheduler.on_ready(model, parallel=self.parallel, now=self.now))

    def gone(self, model: str) -> None:
        self.books.release(model)
        self.perform(self.scheduler.on_gone(model, now=self.now))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Dispatch(job_id, _):
                    self.after(self.job_s, lambda job_id=job_id: self.finish(job_id))  # type: ignore[misc]
                case Load(model):
                    self.n_loads += 1
                    self.books.reserve(model)
                    self.after(self.load_s[model], lambda model=model: self.ready(model))  # type: ignore[misc]
                case Unload(model):
                    self.after(self.unload_s, lambda model=model: self.gone(model))  # type: ignore[misc]
                case CancelLoad():
                    raise AssertionError("no client of a simulation hangs up")
                case Reject(job_id, code):
                    self.rejected.append(code)
                    self.end(job_id)

    @property
    def all_waits(self) -> list[float]:
        return [wait for waits in self.waits.values() for wait in waits]

    @property
    def mean_s(self) -> float:
        return sum(self.all_waits) / len(self.all_waits)

    @property
    def longest_s(self) -> float:
        return max(self.all_waits)
