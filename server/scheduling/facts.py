"""What others may know of the scheduler's models and jobs; nothing here changes anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.scheduling.decisions import ModelState
from server.scheduling.outlook import Outlook, wait_s
from server.scheduling.rules import ModelView, view_of

if TYPE_CHECKING:
    from server.scheduling.model_record import ModelRecord, Ticket


class SchedulerFacts:
    """The part of `scheduler.Scheduler` that only tells."""

    def __init__(self) -> None:
        self._models: dict[str, ModelRecord] = {}
        self._tickets: dict[str, Ticket] = {}
        self._draining = False

    @property
    def draining(self) -> bool:
        """True once no new jobs are taken."""
        return self._draining

    @property
    def n_waiting(self) -> int:
        """Jobs in the queue."""
        return sum(model.n_waiting for model in self._models.values())

    @property
    def n_running(self) -> int:
        """Jobs in workers."""
        return sum(len(model.running) for model in self._models.values())

    def state(self, name: str) -> ModelState:
        """Where a model is; unloaded where it was retired and forgotten."""
        model = self._models.get(name)
        return ModelState.UNLOADED if model is None else model.state

    def wanted(self, name: str) -> bool:
        """Whether a job or an operator waits for the model."""
        model = self._models.get(name)
        return model is not None and model.wanted

    def paused(self, name: str, now: float) -> bool:
        """Whether a model that kept failing is left alone."""
        return now < self._models[name].quarantine.until

    def last_error(self, name: str) -> str | None:
        """Why the last load or worker of a model ended, until the next good load."""
        return self._models[name].last_error

    def view(self, name: str, now: float) -> ModelView:
        """The state of a model."""
        return view_of(self._models[name], now)

    def outlook(self, job_id: str, now: float) -> Outlook | None:
        """Where a waiting job stands; None for one that does not wait."""
        ticket = self._tickets.get(job_id)
        if ticket is None or not ticket.queued:
            return None
        model = self._models[ticket.model]
        position = sum(1 for other in model.waiting if other.rank < ticket.rank)
        return Outlook(position, wait_s(self._models.values(), model, position, now))
