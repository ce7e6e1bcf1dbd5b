"""How jobs end that no worker holds, what failed loads and workers lead to, and when a job's time is over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from server.scheduling.deadlines import Deadlines
from server.scheduling.decisions import Action, Reject
from server.scheduling.facts import SchedulerFacts
from server.scheduling.model_record import ModelRecord, Ticket, whole_seconds
from server.scheduling.outlook import wait_s

if TYPE_CHECKING:
    from backends.messages import ErrorCode

SHUTTING_DOWN: Final = "the server is shutting down"
_RETRIED: Final[frozenset[ErrorCode]] = frozenset(("worker_crashed", "out_of_memory"))
"""Failures after which a job that got no token is run once more."""


class JobEnds(SchedulerFacts):
    """The part of `scheduler.Scheduler` that ends jobs."""

    def __init__(self) -> None:
        super().__init__()
        self._deadlines: Deadlines[Ticket] = Deadlines(self._deadline)

    # Failures

    def _count_failure(
        self, model: ModelRecord, error: tuple[ErrorCode, str], now: float, *, was_loading: bool, strike: bool
    ) -> list[Action]:
        """End those who wait for a failed load, and those of a model that fails too often."""
        code, message = error
        actions: list[Action] = []
        if was_loading:
            model.smaller_by = 0
            retry_s = self._retry_after_s(model, now) if code in ("memory_busy", "out_of_memory") else None
            actions += self._reject_waiting(model, code, message, retry_s)
        if strike and model.quarantine.strike(now):
            paused = self._quarantined(model, "", now)
            actions += self._reject_waiting(model, "quarantined", paused.message, paused.retry_after_s)
        return actions

    def _without_growth(self, model: ModelRecord, error: tuple[ErrorCode, str], now: float) -> list[Action]:
        """No memory for a longer context after all: those that wait for it end, the others wait on."""
        model.smaller_by, model.grown = 0, False
        retry_s = self._retry_after_s(model, now) if error[0] != "cannot_fit" else None
        waits = [ticket for ticket in model.queue if ticket.context]
        return [self._reject(ticket, *error, retry_s) for ticket in waits]

    def _requeue(self, ticket: Ticket, code: ErrorCode, message: str, now: float) -> list[Action]:
        """Give a job that failed before its first token one more chance."""
        if ticket.retried or ticket.aborted or self._draining or code not in _RETRIED:
            self._forget(ticket)
            return [Reject(ticket.job_id, "cancelled" if ticket.aborted else code, message)]
        ticket.retried = True
        ticket.waiting_since = now
        self._models[ticket.model].enqueue(ticket)
        self._deadlines.add(ticket)
        return []

    # Times

    def _deadline(self, ticket: Ticket) -> float | None:
        """When a job's time is over: in the queue, or in all."""
        if ticket.ended or ticket.aborted:
            return None
        total = ticket.submitted_at + ticket.timeout_s
        if not ticket.queued or ticket.preempted or self._models[ticket.model].claimed_at is not None:
            return total
        return min(total, ticket.waiting_since + ticket.max_wait_s)

    def _retry_after_s(self, model: ModelRecord, now: float) -> float:
        return whole_seconds(wait_s(self._models.values(), model, model.n_waiting, now))

    # Ends

    def _quarantined(self, model: ModelRecord, job_id: str, now: float) -> Reject:
        message = f"model '{model.name}' failed repeatedly and is paused: {model.last_error}"
        return Reject(job_id, "quarantined", message, whole_seconds(model.quarantine.until - now))

    def _reject(self, ticket: Ticket, code: ErrorCode, message: str, retry_after_s: float | None = None) -> Reject:
        self._models[ticket.model].dequeue(ticket)
        self._forget(ticket)
        return Reject(ticket.job_id, code, message, retry_after_s)

    def _reject_waiting(
        self, model: ModelRecord, code: ErrorCode, message: str, retry_after_s: float | None = None
    ) -> list[Reject]:
        return [self._reject(ticket, code, message, retry_after_s) for ticket in list(model.waiting)]

    def _forget(self, ticket: Ticket) -> None:
        ticket.ended, ticket.queued = True, False
        del self._tickets[ticket.job_id]
