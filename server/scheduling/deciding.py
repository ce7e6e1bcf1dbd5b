"""What follows for models and jobs from the state that they are in, whatever has happened. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.scheduling.budget import Refused
from server.scheduling.decisions import Action, CancelLoad, Dispatch, Forget, ModelState, Unload
from server.scheduling.growth import Growth
from server.scheduling.job_ends import JobEnds
from server.scheduling.swaps import Swaps

if TYPE_CHECKING:
    from backends.messages import ErrorCode
    from server.scheduling.budget import Budget
    from server.scheduling.model_record import ModelRecord, Ticket
    from server.scheduling.rules import Rules

_MOST_SMALLER_BY: Final = 3
"""Loads that may run out of memory in a row: as planned, with the next plan, with one idle model less."""


class Deciding(JobEnds):
    """The part of `scheduler.Scheduler` that moves models and jobs on."""

    def __init__(self, rules: Rules, budget: Budget) -> None:
        super().__init__()
        self._rules = rules
        self._budget = budget
        self._retired: set[str] = set()
        self._swaps = Swaps(self._models, budget, rules.swaps, unclaim=self._unclaim)
        self._growth = Growth(budget, shrink_after_s=rules.shrink_after_s)

    def _decide(self, now: float) -> list[Action]:
        self._swaps.call_off(now)
        actions = self._move_on(now)
        while self._rules.swaps.policy == "fifo" and (more := self._move_on(now)):
            actions += more
        if not self._draining:
            actions += self._swaps.decide(now)
        if self._retired:
            actions += self._let_go()
        return actions

    def _let_go(self) -> list[Action]:
        """Retired models that have nothing to do any more."""
        actions: list[Action] = []
        for name in sorted(self._retired):
            model = self._models[name]
            if model.idle:
                model.state, model.leaving = ModelState.UNLOADING, "removed"
                actions.append(Unload(name, "removed"))
            elif model.state is ModelState.UNLOADED and not model.wanted:
                self._swaps.forget(name)
                self._retired.discard(name)
                del self._models[name]
                actions.append(Forget(name))
        return actions

    def _move_on(self, now: float) -> list[Action]:
        """What follows for each model from its own state."""
        actions: list[Action] = []
        for name, model in self._models.items():
            if model.state is ModelState.UNLOADED:
                continue
            if model.state is ModelState.LOADING and not model.wanted:
                model.state, model.leaving = ModelState.UNLOADING, None
                actions.append(CancelLoad(name))
            if self._growth.is_over(model) and not self._draining:
                model.state, model.leaving, model.preempt_at = ModelState.READY, None, None
                self._unclaim(model, now)
            if model.state is ModelState.READY and model.leaving is not None:
                model.state = ModelState.DRAINING
            if model.state is ModelState.READY and (model.queue or model.light):
                actions += self._dispatch(model, now)
            if model.state is ModelState.DRAINING and not model.running:
                model.state = ModelState.UNLOADING
                actions.append(Unload(name, model.leaving or "manual", self._swaps.beneficiary(name)))
        return actions

    def _dispatch(self, model: ModelRecord, now: float) -> list[Action]:
        """Move what may run now from the queue to running."""
        actions: list[Action] = []
        while (ticket := model.next_job()) is not None and self._in_turn(ticket):
            model.dequeue(ticket)
            actions.append(self._begin(model, ticket, now))
        return actions

    def _begin(self, model: ModelRecord, ticket: Ticket, now: float) -> Dispatch:
        """A job that is in no queue runs from now on."""
        model.running[ticket.job_id] = ticket
        model.idle_since = None
        ticket.queued, ticket.started_at = False, now
        self._deadlines.add(ticket)
        return Dispatch(ticket.job_id, ticket.model)

    def _any_model_waits(self) -> bool:
        """Whether a job or an operator waits for any model, so that every change is a reason to decide anew."""
        if self._rules.swaps.policy == "fifo":
            return True
        return any(m.queue or m.light or m.wanted_at is not None for m in self._models.values())

    def _in_turn(self, ticket: Ticket) -> bool:
        """Whether the policy lets a job go before those of other models."""
        if self._rules.swaps.policy == "collate":
            return True
        return not any(t.order < ticket.order for model in self._models.values() for t in model.waiting)

    def _never_fits(self, model: ModelRecord) -> Refused | None:
        if model.state is not ModelState.UNLOADED:
            return None
        need = self._swaps.plan(model)[0]
        return need if isinstance(need, Refused) else None

    def _another_try(self, model: ModelRecord, code: ErrorCode, now: float) -> list[Action] | None:
        """What a load that found too little memory leads to; None when there is nothing more to try."""
        if self._draining or self._never_fits(model) is not None or not model.wanted:
            return None
        if code == "memory_busy":
            need = self._swaps.plan(model)[0]
            known_now = not isinstance(need, Refused) and not need.within(self._budget.free)
            return [] if known_now else None
        if code != "out_of_memory":
            return None
        model.smaller_by += 1
        if model.smaller_by >= _MOST_SMALLER_BY:
            return None
        return [] if model.smaller_by == 1 else self._swaps.make_air(model, now) or None

    def _unclaim(self, model: ModelRecord, now: float) -> None:
        model.unclaim(now)
        for ticket in model.waiting:
            self._deadlines.add(ticket)
