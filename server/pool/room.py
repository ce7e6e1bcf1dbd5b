"""Makes room for tenants that are no models: idle models leave, the longest idle first, and cached prefixes with them.

For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from backends.plan import Amount
from server.memory.ledger import Tenant
from server.scheduling.decisions import ModelState
from server.scheduling.eviction import helps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from server.pool.parts import PoolParts

WITHIN_S: Final = 10.0
"""For idle models to leave, and for a driver to have their bytes back."""


class NoRoomError(Exception):
    """There is no such room. `elsewhere`: the budget has it, and other programs hold the card's memory."""

    def __init__(self, *, elsewhere: bool) -> None:
        super().__init__("other programs hold it" if elsewhere else "tenants hold it")
        self.elsewhere = elsewhere


class RoomMaker:
    """Of one pool. `leave` lets an idle model go, and returns when it has."""

    def __init__(self, parts: PoolParts, leave: Callable[[str], Awaitable[None]]) -> None:
        self._parts = parts
        self._leave = leave

    async def make(self, needed: Amount) -> None:
        """Have so much unreserved, and free on the card. Raises NoRoomError; not `elsewhere`, nothing has left."""
        memory = self._parts.memory
        leaving = to_leave(self._parts, needed)
        if leaving is None:
            raise NoRoomError(elsewhere=False)
        await let_leave(leaving, self._leave)
        await memory.make_room(needed)
        if not await memory.wait_for_free(needed, within_s=WITHIN_S):
            raise NoRoomError(elsewhere=True)


async def let_leave(models: Iterable[str], leave: Callable[[str], Awaitable[None]]) -> None:
    """Have them leave; those that are still there after `WITHIN_S` leave later, or not."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WITHIN_S):
            await asyncio.gather(*(leave(name) for name in models))


def to_leave(parts: PoolParts, needed: Amount) -> list[str] | None:
    """Idle models that make room for so much, the longest idle first; None where all of them hold less."""
    chosen: list[str] = []
    ledger = parts.memory.ledger
    missing = needed.missing_from(ledger.free - ledger.over).no_less_than_none()
    for _, name, held in idle_models(parts):
        if not missing:
            break
        if helps(held, missing):
            chosen.append(name)
            missing = (missing - held).no_less_than_none()
    return None if missing else chosen


def idle_models(parts: PoolParts) -> list[tuple[float, str, Amount]]:
    """Since when each model that may leave is idle, and what it holds; the longest idle first."""
    now, found = parts.clock(), []
    for name, resident in parts.residents.items():
        view = parts.scheduler.view(name, now)
        is_idle = view.state is ModelState.READY and not view.running and not view.waiting
        if is_idle and not resident.entry.config.pinned:
            reservation = parts.memory.ledger.reservation(Tenant(name))
            found.append((view.idle_since or 0.0, name, Amount() if reservation is None else reservation.taken))
    return sorted(found, key=lambda one: one[:2])
