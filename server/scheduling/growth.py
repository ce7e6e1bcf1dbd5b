"""When a model whose context was left open is loaded with a longer one, and when it shrinks back. Pure.

A job whose prompt does not fit has the model loaded anew, where the budgets can hold it: running jobs end first or are
preempted, new ones wait, and others are evicted for the bytes as for any load. A job whose prompt fits, and whose
answer would be cut, is worth less: for it the model grows only where no other waits for it and nothing is evicted. A
grown model that has been idle for a while shrinks to the context it begins with, in its own place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.scheduling.budget import Refused
from server.scheduling.decisions import Action, Grow, ModelState, Preempt, Stay

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.scheduling.budget import Budget
    from server.scheduling.model_record import ModelRecord, Ticket

_TYPICAL_LOAD_S: Final = 1.0
"""Of a model whose load was not measured."""
_MOST_GROWTHS: Final = 2
"""Loads for one job: one by what was guessed before its prompt was read, one by its tokens."""


class Growth:
    """See the module's text. `shrink_after_s`: seconds of idling."""

    def __init__(self, budget: Budget, *, shrink_after_s: float) -> None:
        self._budget = budget
        self.shrink_after_s = shrink_after_s

    def context_for(self, model: ModelRecord, ticket: Ticket, *, least: int, wanted: int) -> int | Stay:
        """The context that a running job is to wait for, in tokens, or why its model stays as it is."""
        if ticket.growths >= _MOST_GROWTHS:
            return Stay(ticket.job_id, model.name, wanted, "the last load for it gave less")
        if least <= model.context:
            return self._for_an_answer(model, ticket, wanted)
        if not isinstance(self._budget.need(model.name, smaller_by=0, context=wanted), Refused):
            return wanted
        need = self._budget.need(model.name, smaller_by=0, context=least)
        return Stay(ticket.job_id, model.name, least, need.message) if isinstance(need, Refused) else least

    def _for_an_answer(self, model: ModelRecord, ticket: Ticket, wanted: int) -> int | Stay:
        """The prompt fits, and what is behind it is little room for an answer."""
        others = len(model.running) - 1 + model.n_waiting
        if others:
            return Stay(
                ticket.job_id, model.name, wanted, f"room for an answer, and {others} other requests would wait"
            )
        need = self._budget.need(model.name, smaller_by=0, context=wanted)
        if isinstance(need, Refused):
            return Stay(ticket.job_id, model.name, wanted, need.message)
        if not need.within(self._budget.free + self._budget.held(model.name)):
            return Stay(ticket.job_id, model.name, wanted, "room for an answer, and another model would be evicted")
        return wanted

    def begin(self, model: ModelRecord, ticket: Ticket, context: int, now: float) -> Action:
        """The job, which is in the queue, waits for the context; its model leaves to come again."""
        ticket.context, ticket.growths = context, ticket.growths + 1
        if model.state is ModelState.READY and model.leaving is None:
            model.leaving = "growth"
        patience_s = _patience_s(model)
        if model.leaving == "growth":
            model.claim(now)
        if model.running and model.leaving == "growth":
            model.preempt_at = min(now + patience_s, model.preempt_at or now + patience_s)
        return Grow(ticket.job_id, model.name, context, len(model.running), patience_s if model.running else 0.0)

    @staticmethod
    def is_over(model: ModelRecord) -> bool:
        """Whether a model was to come again with a longer context, and no job waits for that any more."""
        still_there = model.state in (ModelState.READY, ModelState.DRAINING)
        return model.leaving == "growth" and still_there and model.wanted_context <= model.context

    @staticmethod
    def preempt(models: Iterable[ModelRecord], now: float) -> list[Action]:
        """Stop the jobs for whose ends models have waited long enough; they go on after the load."""
        actions: list[Action] = []
        for model in models:
            if model.preempt_at is None or model.preempt_at > now:
                continue
            model.preempt_at = None
            actions += [
                Preempt(job.job_id, model.name) for job in model.running.values() if job.sequences and not job.aborted
            ]
        return actions

    def first_context(self, model: ModelRecord, context: int) -> int:
        """What a model that is not loaded is loaded with for a job that seems to need so much; 0 where it cannot be."""
        if model.state is not ModelState.UNLOADED or not context:
            return 0
        return 0 if isinstance(self._budget.need(model.name, smaller_by=0, context=context), Refused) else context

    def shrink_at(self, model: ModelRecord) -> float | None:
        """When the idle model is to shrink; None where it has not grown, is busy, or leaves before."""
        if not model.grown or not model.idle or model.idle_since is None or model.wanted_at is not None:
            return None
        at, unload_at = model.idle_since + self.shrink_after_s, model.unload_at()
        return at if unload_at is None or at < unload_at else None

    def shrink(self, models: Iterable[ModelRecord], now: float) -> None:
        """Let those leave whose time has come; they come again where there is room."""
        for model in models:
            if (at := self.shrink_at(model)) is not None and at <= now:
                model.state, model.leaving = ModelState.DRAINING, "shrink"
                model.wanted_at, model.shrinks = now, model.idle_since


def _patience_s(model: ModelRecord) -> float:
    """Seconds for which running jobs may go on before they are preempted, instead of the jobs that wait.

    As long, over all that wait, as the load will hold up all that run: then neither costs more than twice what the
    better choice would have (the ski rental problem: Karlin et al., Competitive snoopy caching, 1988).
    """
    load_s = _TYPICAL_LOAD_S if model.load_s is None else model.load_s
    return load_s * len(model.running) / max(1, model.n_waiting)
