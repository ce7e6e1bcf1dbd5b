"""The training job as a tenant of the ledger: of the lowest priority, it leaves when a model needs its memory.

Owns what it holds; what runs in it is `server.tuning`'s. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from backends.plan import Amount
from server.memory.ledger import LedgerError, Tenant
from server.pool.room import NoRoomError

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import Device
    from backends.plan import Footprint
    from server.pool.foreground import Foreground
    from server.pool.parts import PoolParts
    from server.pool.room import RoomMaker
    from server.pool.status import TrainingStatus

_PRIORITY: Final = -1000


class TrainingTenant:
    """Of one pool: one job at a time. See `server.memory.memory.Guest`."""

    def __init__(self, parts: PoolParts, room: RoomMaker, foreground: Foreground) -> None:
        self._parts = parts
        self._room = room
        self._foreground = foreground
        self._tenant: Tenant | None = None
        self._on_wanted: Callable[[], None] | None = None
        self._gone = asyncio.Event()
        self.exclusive = False
        """It leaves for no model."""
        self.pid = 0
        """Of the process that trains; 0: none does."""
        self.told: Callable[[], TrainingStatus | None] = lambda: None
        """What is told of the job that runs; set by who runs it."""

    @property
    def held(self) -> Amount:
        """What it has reserved."""
        if self._tenant is None:
            return Amount()
        reservation = self._parts.memory.ledger.reservation(self._tenant)
        return Amount() if reservation is None else reservation.reserved

    @property
    def yields(self) -> Amount:
        """What it gives back for others."""
        return Amount() if self.exclusive else self.held

    @property
    def stays(self) -> Amount:
        """What it holds and gives back to no one."""
        return self.held if self.exclusive else Amount()

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self._parts.memory.device

    @property
    def budget(self) -> Amount:
        """What it could have with nothing else there."""
        return self._parts.memory.ledger.budget

    def fits_beside(self, needed: Amount) -> bool:
        """Whether so much is free although no model leaves."""
        return needed.within(self._parts.memory.ledger.free)

    @property
    def pressed(self) -> bool:
        """Whether tenants hold more than the budgets, which have shrunk."""
        return bool(self._parts.memory.ledger.over)

    @property
    def quiet_s(self) -> float:
        """How long no job has run or waited; 0 while one does, of a batch too."""
        scheduler = self._parts.scheduler
        return 0.0 if scheduler.n_running or scheduler.n_waiting else self._foreground.quiet_s(self._parts.clock())

    async def enter(self, name: str, footprint: Footprint, on_wanted: Callable[[], None]) -> None:
        """Have idle models leave as far as that is needed, and reserve; `on_wanted` is called when it is to leave.

        Raises NoRoomError.
        """
        tenant = Tenant(name, "training", _PRIORITY)
        await self._room.make(footprint.amount)
        try:
            self._parts.memory.ledger.reserve(tenant, footprint)
        except LedgerError:
            raise NoRoomError(elsewhere=False) from None
        self._tenant, self._on_wanted = tenant, on_wanted
        self._gone.clear()

    def go(self) -> None:
        """Its process is gone: what waits for its memory may load."""
        assert self._tenant is not None
        memory, tenant = self._parts.memory, self._tenant
        self._tenant = self._on_wanted = None
        self.pid = 0
        memory.ledger.release(tenant)
        memory.share_out()
        self._gone.set()
        self._parts.perform(self._parts.scheduler.on_tick(self._parts.clock()))

    async def leave(self) -> None:
        """Have it leave; returns when it has."""
        if self._on_wanted is not None:
            self._on_wanted()
            await self._gone.wait()
