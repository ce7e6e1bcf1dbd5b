"""Which model is resident and which job goes next, decided in seconds: a pure state machine.

Owns the one queue of the system and the state of every model. It returns actions and performs none: no await, no clock,
no environment, no logging. Room is counted in sequences. One load at a time in the whole system. Within a model jobs go
by priority, then first come first served; a job too large for the room is not overtaken. How models make room for each
other is decided in `server.scheduling.swaps`, what follows from a state in `server.scheduling.deciding`.

A job goes queued -> running -> finished | failed. It goes running -> queued once, when its worker crashed or ran out of
memory before its first token, and whenever its model is loaded anew with a longer context.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from backends.messages import ErrorCode
from server.scheduling.budget import Budget, Unbounded
from server.scheduling.deciding import Deciding
from server.scheduling.decisions import (
    Abort,
    Action,
    CancelLoad,
    ModelState,
    Reject,
    Stay,
    UnloadReason,
)
from server.scheduling.job_ends import SHUTTING_DOWN
from server.scheduling.model_record import LIGHT_JOBS, ModelRecord, ModelRules, Ticket
from server.scheduling.outlook import Outlook
from server.scheduling.quarantine import Quarantine
from server.scheduling.rules import ModelView, Rules
from server.scheduling.swaps import SwapRules

__all__ = ["LIGHT_JOBS", "ModelRules", "ModelView", "Outlook", "Rules", "Scheduler", "SwapRules"]

_DRAINING_RETRY_S: Final = 1.0
_PATIENCE_S: Final = 30 * 86400.0
"""Of a job that has time: by then it has been ended from outside."""
_NO_MEMORY: Final[frozenset[ErrorCode]] = frozenset(("out_of_memory", "memory_busy", "cannot_fit"))


class Scheduler(Deciding):
    """See the module's text. Every `now` is in seconds on one monotonic clock of the caller's."""

    def __init__(self, models: Iterable[ModelRules], rules: Rules, budget: Budget | None = None) -> None:
        super().__init__(rules, budget or Unbounded())
        for model in models:
            self.add(model)
        self._n_submitted = 0

    def next_deadline(self) -> float | None:
        """When `on_tick` has something to do next, if nothing else happens before."""
        idle = [model for model in self._models.values() if model.idle_since is not None]
        times = [at for model in idle if (at := model.unload_at()) is not None]
        times += [at for model in idle if (at := self._growth.shrink_at(model)) is not None]
        times += [model.preempt_at for model in self._models.values() if model.preempt_at is not None]
        times += [at for at in (self._deadlines.next(), self._swaps.look_at) if at is not None]
        return min(times, default=None)

    # What happens

    def submit(
        self,
        job_id: str,
        model_name: str,
        *,
        sequences: int,
        priority: int = 0,
        keep_alive_s: float | None = None,
        context: int = 0,
        patient: bool = False,
        now: float,
    ) -> list[Action]:
        """Take a job in; the id is new and the model exists. `keep_alive_s` holds until the model's next job.

        `patient`: it waits and runs as long as that takes.

        `context`: tokens it seems to need, of a model that can be loaded with more than it begins with; 0: no more.
        """
        model = self._models[model_name]
        if self._draining:
            return [Reject(job_id, "draining", SHUTTING_DOWN, _DRAINING_RETRY_S)]
        if now < model.quarantine.until:
            return [self._quarantined(model, job_id, now)]
        if (refused := self._never_fits(model)) is not None:
            retry_s = self._retry_after_s(model, now) if refused.code == "memory_busy" else None
            return [Reject(job_id, refused.code, refused.message, retry_s)]
        limits = (self._rules.request_timeout_s, self._rules.swaps.max_wait_s)
        times = (now, now, *((_PATIENCE_S, _PATIENCE_S) if patient else limits))
        ticket = Ticket(job_id, model_name, sequences, priority, self._n_submitted + 1, *times)
        at_once = model.state is ModelState.READY and model.has_room(ticket)
        if not at_once and self.n_waiting >= self._rules.max_queue:
            message = f"the queue is full: {self.n_waiting} requests wait"
            return [Reject(job_id, "queue_full", message, self._retry_after_s(model, now))]
        self._n_submitted += 1
        if not patient:  # what clients do tells which models they want next
            model.arrived(now)
            model.keep_alive_s = keep_alive_s
        ticket.context = self._growth.first_context(model, context)
        ticket.growths = 1 if ticket.context else 0
        self._tickets[job_id] = ticket
        if at_once and not self._any_model_waits():
            return [self._begin(model, ticket, now)]  # nothing else changes by it
        model.enqueue(ticket)
        self._deadlines.add(ticket)
        return self._decide(now)

    def cancel(self, job_id: str, now: float) -> list[Action]:
        """The client wants no answer any more; nothing for an unknown id."""
        ticket = self._tickets.get(job_id)
        if ticket is None or ticket.aborted:
            return []
        if ticket.queued:
            return [self._reject(ticket, "cancelled", "the request was cancelled"), *self._decide(now)]
        ticket.aborted = True
        return [Abort(job_id, "cancelled", "the request was cancelled")]

    def on_terminal(
        self, job_id: str, now: float, *, finished: bool, again: tuple[ErrorCode, str] | None = None
    ) -> list[Action]:
        """A running job has ended, `finished` when it went well: its room is free.

        With `again`, the failure of a job that got no token and has had no terminal event yet: it is run once more.
        """
        ticket = self._tickets.get(job_id)
        if ticket is None or ticket.queued:
            return []
        model = self._models[ticket.model]
        del model.running[job_id]
        if ticket.sequences:
            model.job_took(now - ticket.started_at)
        if finished and not model.quarantine.clean:
            model.quarantine.forgive()
        if not model.running:
            model.idle_since = model.last_used_at = now
        if again is not None:
            return [*self._requeue(ticket, *again, now), *self._decide(now)]
        self._forget(ticket)
        return self._decide(now)

    def on_too_long(self, job_id: str, now: float, *, least: int, wanted: int) -> list[Action]:
        """A running job got no token, because its model's context is too short: tokens that it needs, and wants.

        Its worker has ended it. It waits for a longer context, or runs again with what there is.
        """
        ticket = self._tickets.get(job_id)
        if ticket is None or ticket.queued:
            return []
        model = self._models[ticket.model]
        context = self._growth.context_for(model, ticket, least=least, wanted=wanted)
        if self._draining or isinstance(context, Stay):
            return [context if isinstance(context, Stay) else Stay(job_id, model.name, context, SHUTTING_DOWN)]
        self._wait_again(ticket, now)
        return [self._growth.begin(model, ticket, context, now), *self._decide(now)]

    def on_preempted(self, job_id: str, now: float) -> list[Action]:
        """A running job's worker has stopped it, as asked: it waits for its model's next load, and goes on there."""
        ticket = self._tickets.get(job_id)
        if ticket is None or ticket.queued:
            return []
        ticket.preempted = True
        self._wait_again(ticket, now)
        if self._draining:
            return [self._reject(ticket, "draining", SHUTTING_DOWN), *self._decide(now)]
        return self._decide(now)

    def _wait_again(self, ticket: Ticket, now: float) -> None:
        """A running job that goes back into the queue."""
        model = self._models[ticket.model]
        del model.running[ticket.job_id]
        if not model.running:
            model.idle_since = model.last_used_at = now
        ticket.waiting_since = now
        model.enqueue(ticket)
        self._deadlines.add(ticket)

    def on_ready(self, model_name: str, *, parallel: int, now: float, context: int = 0) -> list[Action]:
        """A load has succeeded; `context` tokens of one request, 0 where its sort of model has none."""
        model = self._models[model_name]
        model.loaded_in(now - model.loading_since)
        model.state, model.parallel, model.smaller_by = ModelState.READY, parallel, 0
        model.wanted_at = model.last_error = None
        model.ready_at, model.context = now, context
        model.idle_since, model.shrinks = now if model.shrinks is None else model.shrinks, None
        self._unclaim(model, now)
        return [*self._dispatch(model, now), *self._decide(now)]

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
        was_loading = model.state is ModelState.LOADING
        lost = list(model.running.values())
        if lost:
            model.last_used_at = now
        model.running.clear()
        model.state, model.leaving, model.idle_since, model.preempt_at = ModelState.UNLOADED, None, None, None
        self._unclaim(model, now)
        actions: list[Action] = []
        code, message = error or ("draining", "the server is shutting this model down")
        for ticket in lost:
            if ticket.job_id in retry:
                actions += self._requeue(ticket, code, message, now)
            else:
                self._forget(ticket)
        if error is not None:
            model.last_error = message
            if was_loading and (another := self._another_try(model, code, now)) is not None:
                return actions + another + self._decide(now)
            if was_loading and model.grown and code in _NO_MEMORY:
                return [*actions, *self._without_growth(model, error, now), *self._decide(now)]
            actions += self._count_failure(model, error, now, was_loading=was_loading, strike=strike)
        if was_loading:
            model.wanted_at = model.shrinks = None
        if not model.wanted:
            model.keep_alive_s = None  # what the last request asked for was for the load that is over
        if self._draining:
            actions += self._reject_waiting(model, "draining", SHUTTING_DOWN)
        return actions + self._decide(now)

    def on_tick(self, now: float) -> list[Action]:
        """Time has passed, or the budgets have changed."""
        actions: list[Action] = []
        for ticket in self._deadlines.due(now):
            model = self._models[ticket.model]
            if ticket.queued:
                waited = f"the request waited {now - ticket.submitted_at:.0f} s for model '{model.name}'"
                actions.append(self._reject(ticket, "queue_timeout", waited, self._retry_after_s(model, now)))
            else:
                ticket.aborted = True
                message = f"the request took longer than {ticket.timeout_s:g} s"
                actions.append(Abort(ticket.job_id, "request_timeout", message))
        for model in self._models.values():
            unload_at = model.unload_at()
            if unload_at is not None and unload_at <= now:
                model.state, model.leaving = ModelState.DRAINING, "ttl"
        if not self._draining:
            actions += self._growth.preempt(self._models.values(), now)
            self._growth.shrink(self._models.values(), now)
        return actions + self._decide(now)

    # What the operator wants

    def load(self, model_name: str, now: float) -> list[Action]:
        """Make the model resident without a job; does nothing for one that is, or that is quarantined."""
        model = self._models[model_name]
        if model.state is ModelState.READY or self._draining or model.quarantine.active(now):
            return []
        model.wanted_at, model.shrinks = now if model.wanted_at is None else model.wanted_at, None
        if model.state is ModelState.LOADING:
            model.leaving = None
        return self._decide(now)

    def pardon(self, model_name: str) -> None:
        """The model may be tried again at once."""
        self._models[model_name].quarantine.lift()

    def unload(self, model_name: str, now: float, *, reason: UnloadReason = "manual") -> list[Action]:
        """Let the model finish what it runs and go; a load that jobs wait for is let finish first."""
        model = self._models[model_name]
        model.wanted_at = None
        if model.state in (ModelState.LOADING, ModelState.READY, ModelState.DRAINING):
            model.leaving = reason
        return self._decide(now)

    def drain(self, now: float) -> list[Action]:
        """Take no new jobs and start no new loads; what is accepted and has a worker goes on."""
        self._draining = True
        actions: list[Action] = []
        for model in self._models.values():
            model.wanted_at = model.preempt_at = None  # there is no load in which preempted jobs would go on
            if model.state in (ModelState.UNLOADED, ModelState.DRAINING, ModelState.UNLOADING):
                actions += self._reject_waiting(model, "draining", SHUTTING_DOWN)
        return actions + self._decide(now)

    # What the configuration says otherwise

    def add(self, rules: ModelRules) -> None:
        """There is a model more, not loaded."""
        self._models[rules.name] = ModelRecord(rules, Quarantine(self._rules.quarantine), rules.parallel)

    def change(self, rules: ModelRules, now: float, *, reload: bool) -> list[Action]:
        """The model's rules are others. With `reload` it is to be loaded otherwise, once what it runs has ended.

        One that was resident is loaded again by itself; a load under way is given up, and begun anew.
        """
        model = self._models[rules.name]
        model.rules = rules
        self._retired.discard(rules.name)
        if not reload:
            return self._decide(now)
        model.quarantine.lift()
        model.last_error, model.smaller_by, model.shrinks = None, 0, None
        if model.state is ModelState.UNLOADED:
            model.parallel = rules.parallel
        elif model.state is ModelState.READY:
            model.leaving, model.wanted_at = "changed", now
        elif model.state is ModelState.DRAINING and model.leaving == "room":
            model.leaving = "changed"  # it may not stay as it is, wanted or not
        elif model.state is ModelState.LOADING:
            model.state, model.leaving = ModelState.UNLOADING, None
            return [CancelLoad(model.name), *self._decide(now)]
        return self._decide(now)

    def retire(self, model_name: str, now: float) -> list[Action]:
        """The model is no longer configured: it serves what it has accepted, leaves, and is forgotten."""
        model = self._models[model_name]
        model.rules = replace(model.rules, pinned=False)
        model.wanted_at = None
        self._retired.add(model_name)
        return self._decide(now)

    def change_rules(self, rules: Rules, now: float) -> list[Action]:
        """Other limits from now on; jobs that are accepted keep their times."""
        self._rules = rules
        self._swaps.rules = rules.swaps
        return self._decide(now)
