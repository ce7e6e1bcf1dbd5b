"""Memory lent to other programs for a while: room is made by idle models, and taken back when the time is over.

A lease is a tenant of the ledger like a model. Owns who has one and until when. For the event loop's thread only; times
are seconds on the pool's clock.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from backends.plan import Amount
from server.memory.claim import Claim
from server.memory.ledger import Tenant
from server.pool.room import WITHIN_S, idle_models, let_leave, to_leave
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.pool.parts import PoolParts


class LeaseRefusedError(Exception):
    """There is no such room; the text has the sums."""


class LeaseStatus(msgspec.Struct, frozen=True):
    """One lease, as it is told."""

    id: str
    name: str
    bytes: int
    seconds_left: float
    object: str = "memory.lease"


@dataclass
class _Lease:
    id: str
    name: str
    n_bytes: int
    ends_at: float
    timer: asyncio.TimerHandle


def _tenant(lease_id: str) -> Tenant:
    return Tenant(lease_id, "lease")


class Leases:
    """Of one pool. `leave` lets an idle model go, and returns when it has."""

    def __init__(self, parts: PoolParts, leave: Callable[[str], Awaitable[None]]) -> None:
        self._parts = parts
        self._leave = leave
        self._leases: dict[str, _Lease] = {}
        self._turn = asyncio.Lock()

    @property
    def all(self) -> list[LeaseStatus]:
        """Those that hold now."""
        return [self._told(lease) for lease in self._leases.values()]

    async def lend(self, n_bytes: int, *, seconds: float, name: str) -> LeaseStatus:
        """Make room and reserve it; one after the other. Raises LeaseRefusedError."""
        async with self._turn:
            lease_id, memory = f"lease_{secrets.token_hex(8)}", self._parts.memory
            leaving = to_leave(self._parts, self._amount(n_bytes) - memory.yields)
            if leaving is None:
                raise self._refused(n_bytes)
            try:
                with Claim(memory.ledger, memory.account, _tenant(lease_id), n_bytes) as claim:
                    await self._make_room(claim, leaving)
            except BaseException:
                self._let_go(lease_id)
                raise
            if claim.missing_bytes:
                self._let_go(lease_id)
                raise self._refused(n_bytes)
            lease = self._leases[lease_id] = _Lease(lease_id, name, n_bytes, *self._until(lease_id, seconds))
            memory.lent(sum(one.n_bytes for one in self._leases.values()))
        self._parts.tell("lent", name=name, lease=lease.id, bytes=n_bytes, seconds=seconds)
        return self._told(lease)

    def renew(self, lease_id: str, seconds: float) -> LeaseStatus:
        """It holds so long from now on. Raises KeyError."""
        lease = self._leases[lease_id]
        lease.timer.cancel()
        lease.ends_at, lease.timer = self._until(lease_id, seconds)
        return self._told(lease)

    def end(self, lease_id: str, *, reason: str = "given_back") -> None:
        """Take the room back: what waits for it may load. Raises KeyError."""
        lease = self._leases.pop(lease_id)
        lease.timer.cancel()
        self._parts.memory.lent(sum(one.n_bytes for one in self._leases.values()))
        self._parts.tell("lease_ended", name=lease.name, lease=lease_id, bytes=lease.n_bytes, reason=reason)
        self._let_go(lease_id)

    def close(self) -> None:
        """No timer is left."""
        for lease in self._leases.values():
            lease.timer.cancel()

    # How

    async def _make_room(self, claim: Claim, leaving: list[str]) -> None:
        """Let these models leave, and cached prefixes, until the claim has all its bytes or nothing more comes."""
        memory = self._parts.memory
        missing = claim.missing_bytes
        await memory.send_guest_away(self._amount(missing))
        await let_leave(leaving, self._leave)
        if memory.device == "cpu":
            await memory.fill(claim)
        needed = self._amount(claim.n_bytes)
        if not claim.missing_bytes and not await memory.wait_for_free(needed, within_s=WITHIN_S):
            raise LeaseRefusedError(
                f"{format_size(claim.n_bytes)} cannot be lent: the budget has them, but the card has fewer free bytes; "
                "another program holds them. hint: see nvidia-smi"
            )

    def _let_go(self, lease_id: str) -> None:
        """Its bytes are the models' again: what waits for them may load."""
        self._parts.memory.ledger.release(_tenant(lease_id))
        self._parts.memory.share_out()
        self._parts.perform(self._parts.scheduler.on_tick(self._parts.clock()))

    def _amount(self, n_bytes: int) -> Amount:
        """Of the memory in which models compute."""
        return Amount(n_bytes) if self._parts.memory.device == "cuda" else Amount(host=n_bytes)

    def _refused(self, n_bytes: int) -> LeaseRefusedError:
        memory = self._parts.memory
        account, idle = memory.account, self._side(sum((held for _, _, held in idle_models(self._parts)), Amount()))
        trains = self._side(Amount() if memory.guest is None else memory.guest.stays + memory.guest.yields)
        lent = sum(lease.n_bytes for lease in self._leases.values())
        taken = {
            "held by models that work, load or are pinned": account.taken_bytes - idle - lent - trains,
            "held by a fine-tuning job": trains,
            "lent": lent,
        }
        told = "".join(f"; {format_size(n)} are {what}" for what, n in taken.items() if n)
        told += f"; that is {format_size(account.over_bytes)} more than the budget" if account.over_bytes else ""
        there = f"{format_size(account.free_bytes)} free" + (
            f", {format_size(idle)} held by idle models" if idle else ""
        )
        return LeaseRefusedError(
            f"{format_size(n_bytes)} cannot be lent: of the budget of {format_size(account.budget_bytes)}"
            f"{self._smaller()} there are {there}{told}. hint: {self._hint(n_bytes, idle)}"
        )

    def _smaller(self) -> str:
        """Why the budget is less than at other times."""
        memory = self._parts.memory
        grows = memory.neighbours.held_back_bytes if memory.device == "cuda" else 0
        by_hour = memory.account.withheld_bytes - grows
        told = f" at this hour ({format_size(by_hour)} less than at others)" if by_hour > 0 else ""
        return told + (
            f" beside another program that grows ({format_size(grows)} are left free for it)" if grows else ""
        )

    def _hint(self, n_bytes: int, idle_bytes: int) -> str:
        memory = self._parts.memory
        most = max(0, memory.account.budget_bytes - (memory.account.taken_bytes - idle_bytes - self._yields))
        less = [f"ask for {format_size(most)} at most"] if most else []
        if n_bytes <= memory.account.budget_bytes:
            return ", or ".join(["wait until the others are idle", *less])
        if n_bytes <= memory.account.budget_bytes + memory.account.withheld_bytes:
            return ", or ".join(["wait until the budget is larger again", *less])
        return less[0] if less else "no lease can be larger than the budget"

    @property
    def _yields(self) -> int:
        """What a fine-tuning job gives back for a lease."""
        return self._side(self._parts.memory.yields)

    def _side(self, amount: Amount) -> int:
        return amount.device if self._parts.memory.device == "cuda" else amount.host

    def _until(self, lease_id: str, seconds: float) -> tuple[float, asyncio.TimerHandle]:
        timer = asyncio.get_running_loop().call_later(seconds, self._over, lease_id)
        return self._parts.clock() + seconds, timer

    def _over(self, lease_id: str) -> None:
        self.end(lease_id, reason="over")

    def _told(self, lease: _Lease) -> LeaseStatus:
        left_s = max(0.0, lease.ends_at - self._parts.clock())
        return LeaseStatus(lease.id, lease.name, lease.n_bytes, round(left_s, 1))
