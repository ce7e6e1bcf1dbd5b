"""What the rooms of the pool share: the models, the scheduler, the budget, the clock, and who is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.pool.speed_meter import SpeedMeter

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from backends.messages import Step
    from backends.plan import Amount
    from server.memory.budget import MemoryBudget
    from server.memory.memory import Memory
    from server.metrics import Metrics
    from server.pool.event_log import EventLog
    from server.pool.loader import Loader
    from server.pool.resident import Resident
    from server.scheduling.decisions import Action
    from server.scheduling.scheduler import Scheduler
    from server.traces import Traces


@dataclass
class PoolParts:
    """Of one pool. `perform` has the scheduler's actions done; every room feeds its answers back through it."""

    residents: dict[str, Resident]
    scheduler: Scheduler
    budget: MemoryBudget
    metrics: Metrics
    event_log: EventLog
    clock: Callable[[], float]
    perform: Callable[[list[Action]], None]
    traces: Traces | None = None
    """Where the spans of jobs go, where a collector is configured."""
    loader: Loader | None = None
    """None until the pool has started."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """Work under way; the pool is closed when none is left."""

    @property
    def memory(self) -> Memory:
        """The device's; only once the pool has started."""
        assert self.loader is not None
        return self.loader.memory

    def tell(self, what: str, **figures: object) -> None:
        """Something has happened."""
        self.event_log.tell(what, **figures)

    def figures(self, what: str, amount: Amount) -> dict[str, int]:
        """`need_bytes` of the memory in which models compute, and on a card `need_host_bytes`."""
        if self.memory.device == "cpu":
            return {f"{what}_bytes": amount.host}
        return {f"{what}_bytes": amount.device, f"{what}_host_bytes": amount.host}

    def foretell_speed(self, resident: Resident) -> None:
        """From now on hold what a loaded model does against what is known of its plan."""
        worker, facts = resident.worker, self.budget.files.facts(resident.name)
        if worker is None or worker.ready is None or facts is None:
            return
        plan, speeds = worker.spec.plan, self.budget.speeds
        computed, predicted = speeds.computed(facts, plan), speeds.estimate(facts, plan)
        if computed is not None and predicted is not None:
            resident.meter = SpeedMeter(computed.speed, predicted)

    def learn_speed(self, resident: Resident, step: Step, now: float) -> None:
        """A loaded model has done something; the estimate of its plan learns of it."""
        if resident.meter is None or resident.worker is None:
            return
        facts, plan = self.budget.files.facts(resident.name), resident.worker.spec.plan
        for phase, ratio in resident.meter.on_step(step, now):
            if facts is not None:
                self.budget.speeds.learn(facts, plan, phase, ratio)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Let something go on beside everything else."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
