"""Which model is resident and which job goes next, decided in seconds: a pure state machine.

Owns the one queue of the system and the state of every model. It returns actions and performs none: no await, no clock,
no environment, no logging. Room is counted in sequences. One load at a time in the whole system. Among models it goes
round robin, within a model by priority, then first come first served; a job too large for the room is not overtaken.

A job goes queued -> running -> finished | failed, and once running -> queued, when its worker crashed before its first
token.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from backends.messages import ErrorCode
from server.decisions import Abort, Action, Dispatch, Load, ModelState, Reject, Unload, UnloadReason
from server.quarantine import Quarantine, QuarantineRules

LIGHT_JOBS: Final = 16
"""Jobs without sequences (tokenizing) that one worker holds at once."""
_SHORTEST_RETRY_S: Final = 1.0
_LONGEST_RETRY_S: Final = 60.0
_SMOOTHING: Final = 0.2


@dataclass(frozen=True)
class Rules:
    """The limits of the whole queue, in jobs and seconds."""

    max_queue: int = 64
    max_wait_s: float = 60.0
    """In the queue, not counting the load of the job's own model."""
    request_timeout_s: float = 600.0
    """From submission to the end."""
    quarantine: QuarantineRules = field(default_factory=QuarantineRules)


@dataclass(frozen=True)
class ModelRules:
    """What the scheduler has to know of a model's configuration."""

    name: str
    parallel: int = 1
    keep_alive_s: float = 600.0
    """How long it stays when idle; -1 means for ever."""
    pinned: bool = False


@dataclass(frozen=True)
class ModelView:
    """What others may know of a model."""

    state: ModelState
    running: int
    waiting: int
    idle_since: float | None
    last_error: str | None
    quarantined_until: float | None


@dataclass
class _Ticket:
    """A job in the queue or in a worker."""

    job_id: str
    sequences: int
    priority: int
    order: int
    submitted_at: float
    waiting_since: float
    started_at: float = 0.0
    retried: bool = False
    aborted: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        return (-self.priority, self.order)


@dataclass
class _Model:
    rules: ModelRules
    quarantine: Quarantine
    parallel: int
    state: ModelState = ModelState.UNLOADED
    waiting: list[_Ticket] = field(default_factory=list)
    running: dict[str, _Ticket] = field(default_factory=dict)
    wanted: bool = False
    """Somebody asked for the model itself, not for an answer of it."""
    leaving: UnloadReason | None = None
    idle_since: float | None = None
    last_error: str | None = None
    seconds_per_job: float = 1.0

    @property
    def free(self) -> int:
        return self.parallel - sum(min(ticket.sequences, self.parallel) for ticket in self.running.values())

    def has_room(self, ticket: _Ticket) -> bool:
        if ticket.sequences == 0:
            return sum(1 for t in self.running.values() if t.sequences == 0) < LIGHT_JOBS
        return min(ticket.sequences, self.parallel) <= self.free

    def unload_at(self) -> float | None:
        """When the idle model is to go; None when it stays."""
        keep_s = self.rules.keep_alive_s
        idle = self.state is ModelState.READY and not self.running and not self.waiting
        if not idle or self.idle_since is None or self.rules.pinned or keep_s < 0:
            return None
        return self.idle_since + keep_s

    def retry_after_s(self) -> float:
        """Seconds until the jobs waiting now are done, by the measured pace."""
        drain_s = (len(self.waiting) + 1) * self.seconds_per_job / self.parallel
        return float(math.ceil(min(max(drain_s, _SHORTEST_RETRY_S), _LONGEST_RETRY_S)))


class Scheduler:
    """See the module's text. Every `now` is in seconds on one monotonic clock of the caller's."""

    def __init__(self, models: Iterable[ModelRules], rules: Rules) -> None:
        self._rules = rules
        self._models = {m.name: _Model(m, Quarantine(rules.quarantine), m.parallel) for m in models}
        self._where: dict[str, str] = {}
        self._turns = deque(self._models)
        self._n_submitted = 0
        self._draining = False

    # What others may know

    @property
    def draining(self) -> bool:
        """True once no new jobs are taken."""
        return self._draining

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue."""
        return sum(len(model.waiting) for model in self._models.values())

    @property
    def n_running(self) -> int:
        """Jobs in workers."""
        return sum(len(model.running) for model in self._models.values())

    def view(self, name: str, now: float) -> ModelView:
        """The state of a model."""
        model = self._models[name]
        return ModelView(
            state=model.state,
            running=len(model.running),
            waiting=len(model.waiting),
            idle_since=model.idle_since,
            last_error=model.last_error,
            quarantined_until=model.quarantine.until if model.quarantine.active(now) else None,
        )

    def next_deadline(self) -> float | None:
        """When `on_tick` has something to do next, if nothing else happens before."""
        times = [at for model in self._models.values() if (at := model.unload_at()) is not None]
        for model in self._models.values():
            times += [self._deadline(model, ticket) for ticket in model.waiting]
            times += [self._total_deadline(t) for t in model.running.values() if not t.aborted]
        return min(times, default=None)

    # What happens

    def submit(self, job_id: str, model_name: str, *, sequences: int, priority: int = 0, now: float) -> list[Action]:
        """Take a job in; the id is new and the model exists."""
        model = self._models[model_name]
        if self._draining:
            return [Reject(job_id, "draining", "the server is shutting down", _SHORTEST_RETRY_S)]
        if model.quarantine.active(now):
            return [self._quarantined(model, job_id, now)]
        self._n_submitted += 1
        ticket = _Ticket(job_id, sequences, priority, self._n_submitted, now, now)
        at_once = model.state is ModelState.READY and not model.waiting and model.has_room(ticket)
        if not at_once and self.n_waiting >= self._rules.max_queue:
            message = f"the queue is full: {self.n_waiting} requests wait"
            return [Reject(job_id, "queue_full", message, model.retry_after_s())]
        self._where[job_id] = model_name
        self._enqueue(model, ticket)
        return self._decide(now)

    def cancel(self, job_id: str, now: float) -> list[Action]:
        """The client wants no answer any more; nothing for an unknown id."""
        model, ticket = self._find(job_id)
        if model is None or ticket is None or ticket.aborted:
            return []
        if ticket in model.waiting:
            return [self._reject(model, ticket, "cancelled", "the request was cancelled"), *self._decide(now)]
        ticket.aborted = True
        return [Abort(job_id, "cancelled", "the request was cancelled")]

    def on_terminal(self, job_id: str, now: float, *, finished: bool) -> list[Action]:
        """A running job has ended, `finished` when it went well: its room is free."""
        model, ticket = self._find(job_id)
        if model is None or ticket is None:
            return []
        del model.running[job_id], self._where[job_id]
        if ticket.sequences:
            model.seconds_per_job += _SMOOTHING * (now - ticket.started_at - model.seconds_per_job)
        if finished:
            model.quarantine.forgive()
        if not model.running:
            model.idle_since = now
        return self._decide(now)

    def on_ready(self, model_name: str, *, parallel: int, now: float) -> list[Action]:
        """A load has succeeded."""
        model = self._models[model_name]
        model.state = ModelState.READY
        model.parallel = parallel
        model.wanted = False
        model.last_error = None
        model.idle_since = now
        for ticket in model.waiting:
            ticket.waiting_since = now
        return self._decide(now)

    def on_gone(
        self,
        model_name: str,
        *,
        now: float,
        error: tuple[ErrorCode, str] | None = None,
        strike: bool = True,
        retry: frozenset[str] = frozenset(),
    ) -> list[Action]:
        """The model's worker has ended, or its load never started one.

        `error` is why, None when it was asked to; `strike` whether it counts towards quarantine; `retry` the running
        jobs that got no token yet. The other running jobs have had their terminal event from the worker's handle.
        """
        model = self._models[model_name]
        failed_to_load = model.state is ModelState.LOADING
        lost = list(model.running.values())
        model.running.clear()
        model.state, model.wanted, model.leaving, model.idle_since = ModelState.UNLOADED, False, None, None
        for ticket in lost:
            if ticket.job_id not in retry:
                del self._where[ticket.job_id]
        actions: list[Action] = []
        code, message = error or ("draining", "the server is shutting this model down")
        for ticket in (t for t in lost if t.job_id in retry):
            actions += self._requeue(model, ticket, code, message, now)
        if error is not None:
            model.last_error = message
            if failed_to_load:
                actions += self._reject_waiting(model, code, message)
            if strike and model.quarantine.strike(now):
                paused = self._quarantined(model, "", now)
                actions += self._reject_waiting(model, "quarantined", paused.message, paused.retry_after_s)
        if self._draining:
            actions += self._reject_waiting(model, "draining", "the server is shutting down")
        return actions + self._decide(now)

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for model in self._models.values():
            for ticket in [t for t in model.waiting if self._deadline(model, t) <= now]:
                retry_s = model.retry_after_s()
                waited = f"the request waited {now - ticket.submitted_at:.0f} s for model '{model.rules.name}'"
                actions.append(self._reject(model, ticket, "queue_timeout", waited, retry_s))
            for ticket in model.running.values():
                if not ticket.aborted and self._total_deadline(ticket) <= now:
                    ticket.aborted = True
                    message = f"the request took longer than {self._rules.request_timeout_s:g} s"
                    actions.append(Abort(ticket.job_id, "request_timeout", message))
            unload_at = model.unload_at()
            if unload_at is not None and unload_at <= now:
                model.state, model.leaving = ModelState.DRAINING, "ttl"
        return actions + self._decide(now)

    # What the operator wants

    def load(self, model_name: str, now: float) -> list[Action]:
        """Make the model resident without a job; does nothing for one that is, or that is quarantined."""
        model = self._models[model_name]
        if model.state is ModelState.READY or self._draining or model.quarantine.active(now):
            return []
        model.wanted = True
        return self._decide(now)

    def unload(self, model_name: str, now: float, *, reason: UnloadReason = "manual") -> list[Action]:
        """Let the model finish what it runs and go; a load under way is let finish first."""
        model = self._models[model_name]
        model.wanted = False
        if model.state in (ModelState.LOADING, ModelState.READY):
            model.leaving = reason
        return self._decide(now)

    def drain(self, now: float) -> list[Action]:
        """Take no new jobs and start no new loads; what is accepted and has a worker goes on."""
        self._draining = True
        actions: list[Action] = []
        for model in self._models.values():
            model.wanted = False
            if model.state in (ModelState.UNLOADED, ModelState.DRAINING, ModelState.UNLOADING):
                actions += self._reject_waiting(model, "draining", "the server is shutting down")
        return actions + self._decide(now)

    # How it decides

    def _decide(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for name, model in self._models.items():
            if model.state is ModelState.READY and model.leaving is not None:
                model.state = ModelState.DRAINING
            if model.state is ModelState.READY:
                actions += [Dispatch(ticket.job_id, name) for ticket in self._dispatchable(model, now)]
            if model.state is ModelState.DRAINING and not model.running:
                model.state = ModelState.UNLOADING
                actions.append(Unload(name, model.leaving or "manual"))
        return actions + self._next_load(now)

    def _dispatchable(self, model: _Model, now: float) -> Iterator[_Ticket]:
        """Move what may run now from the queue to running."""
        blocked = False
        for ticket in list(model.waiting):
            if (blocked and ticket.sequences) or not model.has_room(ticket):
                blocked = blocked or ticket.sequences > 0
                continue
            model.waiting.remove(ticket)
            model.running[ticket.job_id] = ticket
            model.idle_since = None
            ticket.started_at = now
            yield ticket

    def _next_load(self, now: float) -> list[Action]:
        if self._draining or any(model.state is ModelState.LOADING for model in self._models.values()):
            return []
        for name in self._turns:
            model = self._models[name]
            needed = bool(model.waiting) or model.wanted
            if needed and model.state is ModelState.UNLOADED and not model.quarantine.active(now):
                model.state = ModelState.LOADING
                self._turns.remove(name)
                self._turns.append(name)
                return [Load(name)]
        return []

    def _enqueue(self, model: _Model, ticket: _Ticket) -> None:
        bisect.insort(model.waiting, ticket, key=lambda t: t.rank)

    def _requeue(self, model: _Model, ticket: _Ticket, code: ErrorCode, message: str, now: float) -> list[Action]:
        """Give a job whose worker crashed before its first token one more chance."""
        refused = ticket.retried or ticket.aborted or self._draining or code != "worker_crashed"
        if refused:
            del self._where[ticket.job_id]
            return [Reject(ticket.job_id, "cancelled" if ticket.aborted else code, message)]
        ticket.retried = True
        ticket.waiting_since = now
        self._enqueue(model, ticket)
        return []

    def _deadline(self, model: _Model, ticket: _Ticket) -> float:
        total = self._total_deadline(ticket)
        return total if model.state is ModelState.LOADING else min(total, ticket.waiting_since + self._rules.max_wait_s)

    def _total_deadline(self, ticket: _Ticket) -> float:
        return ticket.submitted_at + self._rules.request_timeout_s

    def _quarantined(self, model: _Model, job_id: str, now: float) -> Reject:
        left_s = min(max(math.ceil(model.quarantine.until - now), _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        message = f"model '{model.rules.name}' failed repeatedly and is paused: {model.last_error}"
        return Reject(job_id, "quarantined", message, float(left_s))

    def _reject(
        self, model: _Model, ticket: _Ticket, code: ErrorCode, message: str, retry_after_s: float | None = None
    ) -> Reject:
        model.waiting.remove(ticket)
        del self._where[ticket.job_id]
        return Reject(ticket.job_id, code, message, retry_after_s)

    def _reject_waiting(
        self, model: _Model, code: ErrorCode, message: str, retry_after_s: float | None = None
    ) -> list[Reject]:
        return [self._reject(model, ticket, code, message, retry_after_s) for ticket in list(model.waiting)]

    def _find(self, job_id: str) -> tuple[_Model | None, _Ticket | None]:
        name = self._where.get(job_id)
        if name is None:
            return None, None
        model = self._models[name]
        ticket = model.running.get(job_id) or next((t for t in model.waiting if t.job_id == job_id), None)
        return model, ticket
