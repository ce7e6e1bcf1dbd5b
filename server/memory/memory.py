"""The memories of this machine: which device, how large the budgets, who else holds some of them.

Owns the ledger and what is known about the memories. What fits is decided in `server.memory.placement`. A card's memory
and host memory have a budget each; without a card host memory is the only one. Cached prefixes lie in host memory: they
are in its ledger and yield to models.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from backends.machine import host
from backends.messages import Device
from backends.plan import Amount
from server.memory import gpu
from server.memory.hours import HourlyBudget
from server.memory.ledger import Ledger, Tenant
from server.memory.neighbours import EVERY_S, Neighbours
from server.memory.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import Device, Store
    from server.memory.claim import Claim
    from server.memory.ledger import Account

_CONFIRMED_WITHIN_S: Final = 10.0
"""For workers to let cached prefixes go: a step may be under way."""
LOOK_EVERY_S: Final = 2.0
LEAST_CHANGE: Final = 1 / 64
"""An automatic budget follows the device in steps of at least this share of itself, so that noise changes nothing. What
the operator wrote holds to the byte.
"""
SAY_EVERY_S: Final = 60.0
"""That the figures cannot be read."""
_POLL_S: Final = 0.1
_LOG = logging.getLogger("onecard.memory")


@dataclass(frozen=True)
class Follow:
    """Automatic budgets: each makes one of the bytes that models may have; None where the operator wrote one."""

    device: HourlyBudget | None = None
    host: HourlyBudget | None = None


class Guest(Protocol):
    """A tenant of the lowest priority: it leaves when a model or a lease needs its memory."""

    @property
    def yields(self) -> Amount:
        """What it gives back for others."""
        ...

    @property
    def stays(self) -> Amount:
        """What it holds and gives back to no one."""
        ...

    async def leave(self) -> None:
        """Give everything back; returns when that is done."""


class Memory:
    """The ledger of one machine, and its budgets as they follow what other programs take and give back."""

    def __init__(
        self,
        device: Device,
        budget: Amount,
        *,
        total: Amount,
        device_free_bytes: int = 0,
        device_name: str = "",
        warnings: Sequence[str] = (),
        follow: Follow = Follow(),
        prefix_cache: PrefixCache | None = None,
        neighbours: Neighbours | None = None,
        withheld: Amount | None = None,
    ) -> None:
        self.device: Device = device
        self.ledger = Ledger(budget, has_card=device == "cuda")
        if withheld is not None:
            self.ledger.device.withheld_bytes, self.ledger.host.withheld_bytes = withheld.device, withheld.host
        self.prefix_cache = prefix_cache or PrefixCache(None, 0)
        self.on_budget_change: list[Callable[[], None]] = []
        """Called after a budget has changed."""
        self.pids: Callable[[], list[int]] = list
        """The processes there are that compute."""
        self.guest: Guest | None = None
        self.total = total
        """What the machine has."""
        self.neighbours = neighbours or Neighbours(total.device, 0)
        """What other programs take of the card."""
        self.device_name = device_name
        self.warnings = list(warnings)
        self._device_free_bytes = device_free_bytes
        self._follow = follow
        self.lent_bytes = 0
        """Of the memory in which models compute, what is lent to other programs."""
        self._usable_before: int | None = None
        """What an automatic budget counted on when the first lease began."""
        self._usable_bytes = device_free_bytes if device == "cuda" else host.available_bytes()
        self._promised: list[Callable[[], int]] = []
        """Of host memory, to loads that are about to be reserved."""
        self._ledger_changed = asyncio.Event()
        self.ledger.on_change.append(self._ledger_changed.set)

    @property
    def account(self) -> Account:
        """The memory in which models compute."""
        return self.ledger.device if self.device == "cuda" else self.ledger.host

    @property
    def other(self) -> Amount:
        """What other programs hold; of a card as of the last look."""
        device = self.total.device - self._device_free_bytes - self.ledger.device.reserved_bytes
        ours = self.ledger.host.reserved_bytes + self.prefix_cache.used_bytes
        return Amount(device, self.total.host - host.available_bytes() - ours).no_less_than_none()

    @property
    def free(self) -> Amount:
        """What models can have: what tenants and cached prefixes leave, and what those give back that yield."""
        return self.ledger.free + self.yields

    @property
    def yields(self) -> Amount:
        """What the guest gives back for others."""
        return Amount() if self.guest is None else self.guest.yields

    async def send_guest_away(self, needed: Amount) -> None:
        """Have the guest leave where so much is not free without."""
        if self.guest is not None and self.yields and not needed.within(self.ledger.free):
            await self.guest.leave()

    def release(self, model: str) -> None:
        """Give a model's bytes back: its worker has exited, or there was none."""
        self.ledger.release(Tenant(model))
        self.prefix_cache.leave(model)
        self.share_out()

    def forget(self, model: str) -> None:
        """The model is no more, and neither are the prefixes that were kept of it."""
        self.prefix_cache.forget(model)
        self.share_out()

    def close(self) -> None:
        """Leave nothing behind; only once no worker is left."""
        self.prefix_cache.close()
        self._reserve_prefix_cache()

    # Cached prefixes

    @property
    def _room(self) -> int:
        """What they may take: the cap, and no more than models leave."""
        return min(
            self.prefix_cache.max_bytes,
            max(0, self.ledger.host.free_bytes - sum(missing() for missing in self._promised)),
        )

    def share_out(self) -> None:
        """What models hold has changed: share what they leave out among cached prefixes."""
        self.prefix_cache.fit(self._room)
        self._reserve_prefix_cache()

    def store_for(self, model: str) -> Store | None:
        """Where the worker of a model with a reservation may keep cached prefixes; `share_out` may give it more."""
        store = self.prefix_cache.join(model, self._room)
        self._reserve_prefix_cache()
        return store

    def on_keeps(self, model: str, n_bytes: int) -> None:
        """A worker holds no more than that of cached prefixes."""
        self.prefix_cache.confirm(model, n_bytes)
        self.share_out()

    async def make_room(self, needed: Amount, *, within_s: float = _CONFIRMED_WITHIN_S) -> None:
        """Let cached prefixes leave until so much can be reserved, or cannot be, or the time is over.

        Every change of the ledger is looked at: a worker that confirmed, one that ended, a budget that moved.
        """
        await self._until_free(lambda: needed.host, within_s)

    async def fill(self, claim: Claim) -> None:
        """The same for what a claim on host memory still misses."""
        await self._until_free(lambda: claim.missing_bytes, _CONFIRMED_WITHIN_S)

    async def _until_free(self, missing: Callable[[], int], within_s: float) -> None:
        account = self.ledger.host
        if missing() > account.free_bytes:
            return
        self._promised.append(missing)
        try:
            self.share_out()
            async with asyncio.timeout(within_s):
                while account.unreserved_bytes < missing() <= account.free_bytes:
                    self._ledger_changed.clear()
                    await self._ledger_changed.wait()
        except TimeoutError:
            _LOG.warning("prefix_cache_stay reason=%r", "a worker did not confirm in time that it keeps less")
        finally:
            self._promised.remove(missing)

    def before_leaving(self, model: str, *, needed: Amount) -> None:
        """A worker is about to end to make room for so much: what would have to leave memory goes to its disk."""
        holding = self.ledger.host.holding(Tenant(model))
        freed = holding.reserved_bytes if holding is not None else 0
        room = min(self.prefix_cache.max_bytes, self.ledger.host.free_bytes + freed - needed.host)
        n_loaded = max(0, self.prefix_cache.n_loaded - 1) + bool(needed)
        self.prefix_cache.before_leaving(model, room, n_loaded=n_loaded)

    def _reserve_prefix_cache(self) -> None:
        self.ledger.host.reserve_prefix_cache(self.prefix_cache.reserved_bytes)

    async def keep_looking(self) -> None:
        """Look every now and then, until cancelled; while a card does not answer, the last figure stands."""
        silent_until = 0.0
        answers = True
        while True:
            await asyncio.sleep(EVERY_S if self.neighbours.uneasy else LOOK_EVERY_S)
            try:
                await self.look()
                answers = True
            except gpu.GpuError as error:
                if answers:
                    _LOG.warning("card_unread reason=%r hint=%r", str(error), "its budget stays as it is")
                answers = False
            except OSError as error:
                if time.monotonic() >= silent_until:
                    silent_until = time.monotonic() + SAY_EVERY_S
                    hint = "raise ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "it is tried again"
                    _LOG.warning("budget_unread reason=%r hint=%r", error.strerror, hint)
            except Exception:  # a fault of ours must not leave the budget as it is for ever
                _LOG.exception("budget_error")

    async def look(self) -> None:
        """Read the free memory once, and let automatic budgets follow it. Raises gpu.GpuError."""
        changed = False
        if self._follow.host is not None:
            held = sum(host.anonymous_bytes(pid) for pid in self.pids())  # mapped weights are page cache, which is free
            usable = host.available_bytes() + held + self.prefix_cache.used_bytes
            on_host = self._with_lent(usable) if self.device == "cpu" else usable
            changed = self._resize(self.ledger.host, self._follow.host, on_host)
        try:
            if self.device == "cuda":
                before = self.ledger.device.measured_bytes
                self._device_free_bytes = (await gpu.memory()).free_bytes
                measured = self.ledger.device.measured_bytes
                if measured is not None and measured == before:  # a load changes what is free from moment to moment
                    usable, kept = await self._usable_on_card(measured), self.neighbours.held_back_bytes
                    changed = self._resize(self.ledger.device, self._follow.device, usable, kept=kept) or changed
        finally:
            if changed:
                self.share_out()
                for tell in self.on_budget_change:
                    tell()

    async def _usable_on_card(self, measured_bytes: int) -> int:
        """What models may have of the card; and a look at whether another program's use of it grows."""
        free_bytes = self._device_free_bytes
        usable = self._with_lent(free_bytes + measured_bytes)
        known = await gpu.held_by(self.pids()) if self.neighbours.uneasy else None
        ours_beyond = max(0, (known or 0) - measured_bytes)  # what workers took since is no other program's
        self.neighbours.look(time.monotonic(), self.total.device - usable - ours_beyond)
        return usable

    def lent(self, n_bytes: int) -> None:
        """So much of the memory in which models compute is lent to other programs, which may take it or not yet."""
        self._usable_before = None if not n_bytes else self._usable_before or self._usable_bytes
        self.lent_bytes = n_bytes
        self.neighbours.begin_anew()

    def _with_lent(self, usable_bytes: int) -> int:
        """What leases take is in the ledger already: a budget does not shrink by it once more."""
        self._usable_bytes = usable_bytes
        if self._usable_before is None:
            return usable_bytes
        return usable_bytes + min(max(0, self._usable_before - usable_bytes), self.lent_bytes)

    def _resize(self, account: Account, allowed: HourlyBudget | None, usable_bytes: int, *, kept: int = 0) -> bool:
        """Let a budget follow; what models hold is not free, and yet theirs. `kept` bytes are another program's."""
        if allowed is None:
            return False
        account.withheld_bytes = kept + allowed.withheld(usable_bytes - kept)
        budget_bytes = allowed(usable_bytes - kept)
        moved = abs(budget_bytes - account.budget_bytes)
        is_noise = moved < LEAST_CHANGE * account.budget_bytes and not allowed.is_exact(usable_bytes - kept)
        if not moved or is_noise:
            return False
        account.resize(budget_bytes)
        return True

    async def wait_for_free(
        self, needed: Amount, *, within_s: float, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Wait until the card really has the bytes: a driver returns them some time after a process has exited.

        True at once of host memory, which the kernel has back when the process is reaped.
        """
        if self.device == "cpu":
            return True
        deadline = clock() + within_s
        while True:
            try:
                self._device_free_bytes = (await gpu.memory()).free_bytes
            except gpu.GpuError:
                return True  # the load itself will tell
            if self._device_free_bytes >= needed.device:
                return True
            if clock() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
