"""When a server measures its machine: once, as soon as it has had nothing to do for a while.

A measurement beside requests would slow them and be wrong. A card's plans are chosen by speed, so there the first load
measures (`server.pool.loader`), unless this has come before.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from server.scheduling.decisions import ModelState

if TYPE_CHECKING:
    from server.pool.parts import PoolParts

LOOK_EVERY_S: Final = 5.0
_IDLE_LOOKS: Final = 3
"""In a row, before it measures."""
_BUSY: Final = frozenset({ModelState.LOADING, ModelState.DRAINING, ModelState.UNLOADING})


async def measure_when_idle(parts: PoolParts, *, every_s: float = LOOK_EVERY_S) -> None:
    """Wait for a quiet moment, measure, and foretell the speed of what is loaded."""
    n_idle = 0
    while n_idle < _IDLE_LOOKS:
        await asyncio.sleep(every_s)
        n_idle = 0 if _is_busy(parts) else n_idle + 1
    for name in await parts.budget.measure_speeds():
        parts.tell("measured", backend=name, rates=parts.budget.speeds.source(name))
    for resident in parts.residents.values():
        parts.foretell_speed(resident)


def _is_busy(parts: PoolParts) -> bool:
    scheduler = parts.scheduler
    loads = any(scheduler.state(name) in _BUSY for name in parts.residents)
    return loads or scheduler.n_running > 0 or scheduler.n_waiting > 0
