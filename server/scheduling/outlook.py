"""How long a waiting job will wait, by what has been measured of loads and jobs. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.scheduling.decisions import ModelState

if TYPE_CHECKING:
    from collections.abc import Collection

    from server.scheduling.model_record import ModelRecord


@dataclass(frozen=True)
class Outlook:
    """What a waiting job can be told."""

    position: int
    """Jobs of its model before it."""
    wait_s: float
    """Until it may begin, by what has been measured."""


def wait_s(models: Collection[ModelRecord], model: ModelRecord, n_before: int, now: float) -> float:
    """Seconds until a job behind so many others of its model may begin, by measured drains and loads."""
    waits_s = model.drain_s(n_before + len(model.running))
    if model.state is ModelState.READY:
        return waits_s
    measured = [m.load_s for m in models if m.load_s is not None]
    typical_s = sum(measured) / len(measured) if measured else 0.0
    load_s = typical_s if model.load_s is None else model.load_s
    if model.state is ModelState.LOADING:
        return waits_s + max(0.0, load_s - (now - model.loading_since))
    leaving = [m for m in models if m.state is ModelState.DRAINING]
    drain_s = max((m.drain_s(len(m.running)) for m in leaving), default=0.0)
    before = sum(1 for m in models if m is not model and m.may_load(now))
    return waits_s + drain_s + load_s + before * typical_s
