"""The limits of the whole queue, and what others may know of a model in it. Plain data only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.scheduling.decisions import ModelState
from server.scheduling.quarantine import QuarantineRules
from server.scheduling.swaps import SwapRules

if TYPE_CHECKING:
    from server.scheduling.model_record import ModelRecord


@dataclass(frozen=True)
class Rules:
    """The limits of the whole queue, in jobs and seconds."""

    max_queue: int = 64
    request_timeout_s: float = 600.0
    """From submission to the end."""
    shrink_after_s: float = 300.0
    """Of idling, until a model that was loaded with a longer context for a request shrinks back."""
    swaps: SwapRules = field(default_factory=SwapRules)
    quarantine: QuarantineRules = field(default_factory=QuarantineRules)


@dataclass(frozen=True)
class ModelView:
    """What others may know of a model."""

    state: ModelState
    running: int
    waiting: int
    idle_since: float | None
    last_error: str | None
    quarantined_until: float | None
    unload_at: float | None
    """By the same figure that `on_tick` goes by; None while it is busy and where it stays."""
    keep_s: float
    """How long it stays when idle, as its last request or its configuration says; -1: for ever."""


def view_of(model: ModelRecord, now: float) -> ModelView:
    """What is to be told of a model now."""
    return ModelView(
        state=model.state,
        running=len(model.running),
        waiting=model.n_waiting,
        idle_since=model.idle_since,
        last_error=model.last_error,
        quarantined_until=model.quarantine.until if model.quarantine.active(now) else None,
        unload_at=model.unload_at(),
        keep_s=model.stays_s,
    )
