"""Where one model stands: its state, its jobs and what has been measured of it. Plain data with derived values.

`server.scheduling.scheduler` and `server.scheduling.swaps` are the only ones who change it.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from server.scheduling.deadlines import Deadlines
from server.scheduling.decisions import ModelState, UnloadReason
from server.scheduling.quarantine import Quarantine

LIGHT_JOBS: Final = 16
"""Jobs without sequences (tokenizing) that one worker holds at once."""
HEAT_HALF_LIFE_S: Final = 300.0
"""After which a request counts half in the likelihood of reuse."""
_SMOOTHING: Final = 0.2
_THINK_SMOOTHING: Final = 0.5


@dataclass(frozen=True)
class ModelRules:
    """What the scheduler has to know of a model's configuration."""

    name: str
    parallel: int = 1
    keep_alive_s: float = 600.0
    """How long it stays when idle; -1 means for ever."""
    pinned: bool = False
    priority: int = 0


@dataclass(eq=False)
class Ticket:
    """A job in the queue or in a worker."""

    job_id: str
    model: str
    sequences: int
    priority: int
    order: int
    submitted_at: float
    waiting_since: float
    """Moves on by the time that its own model's drain and load take."""
    timeout_s: float
    """From submission to the end, as the rules were when it came."""
    max_wait_s: float
    """In the queue, likewise."""
    started_at: float = 0.0
    queued: bool = True
    ended: bool = False
    retried: bool = False
    aborted: bool = False
    context: int = 0
    """Tokens of context it waits for; 0: it has asked for none."""
    growths: int = 0
    """Loads that were begun for its context."""
    preempted: bool = False
    """It has begun, and waits for its model to come back: until the end of its time, however long that takes."""

    @property
    def rank(self) -> tuple[int, int]:
        """Lower goes first."""
        return (-self.priority, self.order)


def _since(ticket: Ticket) -> float | None:
    return ticket.waiting_since if ticket.queued else None


@dataclass(eq=False)
class ModelRecord:
    """One model of the catalogue."""

    rules: ModelRules
    """Others take their place when the configuration changes."""
    quarantine: Quarantine
    parallel: int
    state: ModelState = ModelState.UNLOADED
    queue: list[Ticket] = field(default_factory=list)
    """Jobs with sequences, the next one first."""
    light: list[Ticket] = field(default_factory=list)
    """Jobs without."""
    running: dict[str, Ticket] = field(default_factory=dict)
    wanted_at: float | None = None
    """Since when the model itself is asked for, not for an answer of it."""
    leaving: UnloadReason | None = None
    claimed_at: float | None = None
    """Since when room is being made for it, or it loads."""
    loading_since: float = 0.0
    ready_at: float = 0.0
    idle_since: float | None = None
    last_used_at: float | None = None
    last_error: str | None = None
    smaller_by: int = 0
    context: int = 0
    """Of the last load, in tokens; 0: not told."""
    preempt_at: float | None = None
    """When jobs that still run are preempted, because the model is to be loaded with a longer context."""
    grown: bool = False
    """It was loaded for a job that needed more context than it begins with."""
    shrinks: float | None = None
    """It comes again with the context it begins with, where there is room without another's leaving: since when it was
    idle."""
    keep_alive_s: float | None = None
    """What the last request asked for; None: what the configuration says."""
    load_s: float | None = None
    """Measured; None before the first load."""
    seconds_per_job: float = 1.0
    think_s: float | None = None
    """Measured from one job's end to the next one's arrival, when it is idle between."""
    _heat: float = 0.0
    _heat_at: float = 0.0
    _oldest: Deadlines[Ticket] = field(default_factory=lambda: Deadlines(_since))

    @property
    def name(self) -> str:
        """The model's."""
        return self.rules.name

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue."""
        return len(self.queue) + len(self.light)

    @property
    def waiting(self) -> Iterator[Ticket]:
        """Jobs in the queue; take a copy before changing it."""
        yield from self.light
        yield from self.queue

    @property
    def wanted(self) -> bool:
        """It is waited for, with or without a job."""
        return self.wanted_at is not None or bool(self.queue) or bool(self.light)

    @property
    def wanted_context(self) -> int:
        """The longest that a waiting job needs; 0 where none has asked."""
        return max((ticket.context for ticket in self.queue), default=0)

    @property
    def idle(self) -> bool:
        """Resident with nothing to do."""
        return self.state is ModelState.READY and not self.running and not self.queue and not self.light

    @property
    def free(self) -> int:
        """Sequences it could take now."""
        return self.parallel - sum(min(ticket.sequences, self.parallel) for ticket in self.running.values())

    def may_load(self, now: float) -> bool:
        """Whether it is to be loaded when there is room."""
        return self.wanted and self.state is ModelState.UNLOADED and not self.quarantine.active(now)

    def has_room(self, ticket: Ticket) -> bool:
        """Whether a job may run at once, with none before it."""
        if self.queue or self.light:
            return False
        if not ticket.sequences and sum(1 for t in self.running.values() if not t.sequences) >= LIGHT_JOBS:
            return False
        return min(ticket.sequences, self.parallel) <= self.free

    def enqueue(self, ticket: Ticket) -> None:
        """Put a job in its place."""
        ticket.queued = True
        bisect.insort(self.queue if ticket.sequences else self.light, ticket, key=lambda t: t.rank)
        self._oldest.add(ticket)

    def dequeue(self, ticket: Ticket) -> None:
        """Take a job out of the queue."""
        ticket.queued = False
        (self.queue if ticket.sequences else self.light).remove(ticket)

    def next_job(self) -> Ticket | None:
        """The job that may run now; a job too large for the room is not overtaken by other large ones."""
        if self.light and sum(1 for t in self.running.values() if not t.sequences) < LIGHT_JOBS:
            return self.light[0]
        if self.queue and min(self.queue[0].sequences, self.parallel) <= self.free:
            return self.queue[0]
        return None

    def claim(self, now: float) -> None:
        """Room is being made for it: from now on its jobs wait for its own drain and load."""
        self.claimed_at = now if self.claimed_at is None else self.claimed_at

    def unclaim(self, now: float) -> None:
        """That is over; the time it took does not count as waiting."""
        if self.claimed_at is None:
            return
        for ticket in self.waiting:
            ticket.waiting_since += now - max(self.claimed_at, ticket.waiting_since)
        self.claimed_at = None

    def oldest_wait_s(self, now: float) -> float:
        """How long the model has been waited for."""
        since = self._oldest.next()
        if since is None or (self.wanted_at is not None and self.wanted_at < since):
            since = self.wanted_at
        return 0.0 if since is None else now - since

    def top_priority(self) -> int:
        """The highest among its jobs; the model's own when there is none."""
        if self.queue and not self.running and not self.light:
            return self.queue[0].priority
        heads = [jobs[0].priority for jobs in (self.queue, self.light) if jobs]
        return max((*heads, *(t.priority for t in self.running.values())), default=self.rules.priority)

    # What is measured

    def heat(self, now: float) -> float:
        """Requests so far, each counting half after every half-life."""
        return self._heat * math.exp2((self._heat_at - now) / HEAT_HALF_LIFE_S)

    def arrived(self, now: float) -> None:
        """A request has come."""
        self._heat, self._heat_at = self.heat(now) + 1.0, now
        if self.last_used_at is not None and not self.running and not self.n_waiting:
            think_s = now - self.last_used_at
            self.think_s = (
                think_s if self.think_s is None else self.think_s + _THINK_SMOOTHING * (think_s - self.think_s)
            )

    def loaded_in(self, load_s: float) -> None:
        """A load has succeeded."""
        self.load_s = load_s if self.load_s is None else self.load_s + 0.5 * (load_s - self.load_s)

    def job_took(self, seconds: float) -> None:
        """A job has ended."""
        self.seconds_per_job += _SMOOTHING * (seconds - self.seconds_per_job)

    # When it leaves by itself

    @property
    def keep_s(self) -> float:
        """How long it stays when idle; negative means for ever."""
        return self.rules.keep_alive_s if self.keep_alive_s is None else self.keep_alive_s

    @property
    def stays_s(self) -> float:
        """The same with `pinned`, whose models stay; -1 for ever."""
        return -1.0 if self.rules.pinned or self.keep_s < 0 else self.keep_s

    def unload_at(self) -> float | None:
        """When the idle model is to go; None when it stays."""
        if not self.idle or self.idle_since is None or self.stays_s < 0:
            return None
        return self.idle_since + self.stays_s

    def drain_s(self, n_jobs: int) -> float:
        """Seconds until so many jobs are done, by the measured pace."""
        return n_jobs * self.seconds_per_job / self.parallel


def whole_seconds(seconds: float, *, least: float = 1.0, most: float = 60.0) -> float:
    """A `Retry-After`."""
    return float(math.ceil(min(max(seconds, least), most)))
