"""The ledger: what each tenant has reserved of either memory, and what it was measured to take. Pure.

A card's memory and host memory have a budget each; on a machine without a card there is host memory alone. A
reservation that would bring the sum of one memory above its budget by one byte is refused as a whole. Two things can
still go wrong, and `over` counts both: a budget that shrinks below what is reserved, and a load that took more than
was left.

Tenants are whatever holds bytes: models are one sort. The prefix cache lies in host memory and yields to tenants: what
is free for them is counted without it, and reserved once it has made room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from backends.plan import Amount, Footprint, Parts

if TYPE_CHECKING:
    from collections.abc import Callable

TenantKind = Literal["model", "training", "lease", "batch"]


class LedgerError(Exception):
    """A reservation that a budget does not allow, or that is not there."""


@dataclass(frozen=True)
class Tenant:
    """Who holds bytes: a model, a training job, a lease to another program or a batch run."""

    name: str
    kind: TenantKind = "model"
    priority: int = field(default=0, compare=False)
    """As requests have it: a higher one is evicted later."""


@dataclass(frozen=True)
class Holding:
    """What one tenant holds of one memory."""

    predicted: Parts
    reserved_bytes: int
    measured_bytes: int | None = None
    """What it takes once all its buffers are in use; None before the load, and where it can not be measured."""
    measured_parts: Mapping[str, int] | None = None

    @property
    def parts(self) -> dict[str, int]:
        """By component: as measured, until then as predicted."""
        return dict(self.measured_parts or self.predicted.by_name)

    @property
    def error_ratio(self) -> float | None:
        """Measured / predicted; None before the measurement."""
        if self.measured_bytes is None or self.predicted.total_bytes == 0:
            return None
        return self.measured_bytes / self.predicted.total_bytes

    @property
    def unreserved_bytes(self) -> int:
        """What the tenant took although the budget had no room for it."""
        return max(0, (self.measured_bytes or 0) - self.reserved_bytes)

    @property
    def taken_bytes(self) -> int:
        """What comes free when the tenant leaves."""
        return self.reserved_bytes + self.unreserved_bytes


@dataclass(frozen=True)
class Reservation:
    """What one tenant holds of both memories."""

    device: Holding
    host: Holding

    @property
    def predicted(self) -> Footprint:
        """The estimate it was reserved by."""
        return Footprint(self.device.predicted, self.host.predicted)

    @property
    def reserved(self) -> Amount:
        """What is counted against the budgets."""
        return Amount(self.device.reserved_bytes, self.host.reserved_bytes)

    @property
    def taken(self) -> Amount:
        """What comes free when the tenant leaves."""
        return Amount(self.device.taken_bytes, self.host.taken_bytes)


@dataclass(frozen=True)
class Measured:
    """What a loaded tenant takes of one memory; 0 bytes: not known."""

    n_bytes: int = 0
    parts: Mapping[str, int] = field(default_factory=dict)


class Account:
    """One memory: its budget and what tenants hold of it."""

    def __init__(self, budget_bytes: int, where: str, on_change: Callable[[], None]) -> None:
        """`where` is what refusals call it: ` on the card`."""
        self._budget_bytes = budget_bytes
        self._where = where
        self._on_change = on_change
        self._holdings: dict[Tenant, Holding] = {}
        self._prefix_cache_bytes = 0
        self.withheld_bytes = 0
        """What the budget is smaller by for a while: by the hour, or for a program that grows."""
        self._most_bytes = budget_bytes

    @property
    def budget_bytes(self) -> int:
        """What all tenants together may hold."""
        return self._budget_bytes

    @property
    def most_bytes(self) -> int:
        """What the budget was at most, or is at another hour: what it has not now others hold, and it may come back."""
        return max(self._most_bytes, self._budget_bytes + self.withheld_bytes)

    @property
    def reserved_bytes(self) -> int:
        """What tenants have reserved."""
        return sum(holding.reserved_bytes for holding in self._holdings.values())

    @property
    def taken_bytes(self) -> int:
        """What tenants have reserved, and what they took although the budget had no room for it."""
        return sum(holding.taken_bytes for holding in self._holdings.values())

    @property
    def measured_bytes(self) -> int | None:
        """What all tenants but leases take, which are other programs'; None while one of them is not measured."""
        ours = [holding for tenant, holding in self._holdings.items() if tenant.kind != "lease"]
        measured = [holding.measured_bytes for holding in ours if holding.reserved_bytes]
        known = [n_bytes for n_bytes in measured if n_bytes is not None]
        return sum(known) if len(known) == len(measured) else None

    @property
    def prefix_cache_bytes(self) -> int:
        """What is reserved for cached prefixes."""
        return self._prefix_cache_bytes

    @property
    def free_bytes(self) -> int:
        """What is left for tenants: the prefix cache yields to them; 0 while they hold more than the budget."""
        return max(0, self._left_by_tenants)

    @property
    def unreserved_bytes(self) -> int:
        """What neither tenants nor the prefix cache have."""
        return max(0, self._left_by_tenants - self._prefix_cache_bytes)

    @property
    def over_bytes(self) -> int:
        """How much has to leave until what tenants hold is inside the budget again."""
        return max(0, -self._left_by_tenants)

    @property
    def _left_by_tenants(self) -> int:
        return self._budget_bytes - self.taken_bytes

    def holding(self, tenant: Tenant) -> Holding | None:
        """What a tenant holds; None when it has no reservation."""
        return self._holdings.get(tenant)

    def resize(self, budget_bytes: int) -> None:
        """Set the budget anew; reservations stay, even above it."""
        self._budget_bytes = max(0, budget_bytes)
        self._most_bytes = max(self._most_bytes, self._budget_bytes)
        self._on_change()

    def refusal(self, tenant: Tenant, parts: Parts) -> str | None:
        """Why a reservation is not possible; None where it is."""
        if parts.total_bytes <= self.unreserved_bytes:
            return None
        needs = f"{tenant.kind} '{tenant.name}' needs {parts.total_bytes} bytes{self._where}"
        return f"{needs}, {self.unreserved_bytes} are free"

    def reserve(self, tenant: Tenant, parts: Parts) -> None:
        """What `refusal` has nothing against."""
        self._holdings[tenant] = Holding(parts, parts.total_bytes)

    def widen(self, tenant: Tenant, name: str, most_bytes: int) -> int:
        """Give a tenant that has not been measured up to so many bytes more, as far as they are there: how many."""
        n_bytes = min(most_bytes, self.unreserved_bytes)
        if n_bytes > 0:
            before = self._holdings[tenant]
            further = {**before.predicted.further, name: before.predicted.further.get(name, 0) + n_bytes}
            predicted = replace(before.predicted, further=further)
            self._holdings[tenant] = replace(before, predicted=predicted, reserved_bytes=predicted.total_bytes)
            self._on_change()
        return n_bytes

    def settle(self, tenant: Tenant, measured: Measured) -> None:
        """Put what was measured in place of what was predicted.

        The reservation grows as far as the budget goes, further when the prefix cache has made room; what is beyond
        that counts in `over_bytes`.
        """
        if measured.n_bytes <= 0:
            return
        before = self._holdings[tenant]
        self._holdings[tenant] = replace(
            before,
            reserved_bytes=min(measured.n_bytes, self.unreserved_bytes + before.reserved_bytes),
            measured_bytes=measured.n_bytes,
            measured_parts=dict(measured.parts),
        )

    def reserve_prefix_cache(self, n_bytes: int) -> None:
        """Reserve what cached prefixes may take from now on. Raises LedgerError when that is more than is there.

        Tenants that took more than was left for them get what this gives back.
        """
        if n_bytes > self._prefix_cache_bytes + self.unreserved_bytes:
            raise LedgerError(f"cached prefixes want {n_bytes} bytes, {self.unreserved_bytes} more are free")
        self._prefix_cache_bytes = n_bytes
        for tenant, holding in list(self._holdings.items()):
            more = min(holding.unreserved_bytes, self._budget_bytes - self.reserved_bytes - n_bytes)
            if more > 0:
                self._holdings[tenant] = replace(holding, reserved_bytes=holding.reserved_bytes + more)
        self._on_change()

    def release(self, tenant: Tenant) -> None:
        """Give a tenant's bytes back."""
        self._holdings.pop(tenant, None)


class Ledger:
    """See the module's text."""

    def __init__(self, budget: Amount, *, has_card: bool = False) -> None:
        self.on_change: list[Callable[[], None]] = []
        """Called after anything in the ledger has changed, whatever the cause."""
        self.device = Account(budget.device, " on the card" if has_card else "", self._changed)
        self.host = Account(budget.host, " of host memory" if has_card else "", self._changed)

    @property
    def budget(self) -> Amount:
        """What all tenants together may hold."""
        return Amount(self.device.budget_bytes, self.host.budget_bytes)

    @property
    def most(self) -> Amount:
        """What the budgets were at most, or are at another hour."""
        return Amount(self.device.most_bytes, self.host.most_bytes)

    @property
    def withheld(self) -> Amount:
        """What the budgets are smaller by for a while."""
        return Amount(self.device.withheld_bytes, self.host.withheld_bytes)

    @property
    def free(self) -> Amount:
        """What is left for tenants: the prefix cache yields to them."""
        return Amount(self.device.free_bytes, self.host.free_bytes)

    @property
    def unreserved(self) -> Amount:
        """What neither tenants nor the prefix cache have."""
        return Amount(self.device.unreserved_bytes, self.host.unreserved_bytes)

    @property
    def over(self) -> Amount:
        """How much has to leave until what tenants hold is inside the budgets again."""
        return Amount(self.device.over_bytes, self.host.over_bytes)

    def reservation(self, tenant: Tenant) -> Reservation | None:
        """What a tenant holds; None when nothing."""
        device, host = self.device.holding(tenant), self.host.holding(tenant)
        return Reservation(device, host) if device is not None and host is not None else None

    def reserve(self, tenant: Tenant, footprint: Footprint) -> None:
        """Reserve before a load. Raises LedgerError when a budget is too small or there is a reservation already."""
        if self.reservation(tenant) is not None:
            raise LedgerError(f"{tenant.kind} '{tenant.name}' has its reservation already")
        for account, parts in ((self.device, footprint.device), (self.host, footprint.host)):
            if (why := account.refusal(tenant, parts)) is not None:
                raise LedgerError(why)
        self.device.reserve(tenant, footprint.device)
        self.host.reserve(tenant, footprint.host)
        self._changed()

    def settle(self, tenant: Tenant, *, device: Measured = Measured(), host: Measured = Measured()) -> Reservation:
        """Put what a loaded tenant takes with all its buffers in place of what was predicted."""
        self.device.settle(tenant, device)
        self.host.settle(tenant, host)
        self._changed()
        after = self.reservation(tenant)
        assert after is not None
        return after

    def release(self, tenant: Tenant) -> None:
        """Give a tenant's bytes back; only after its worker has exited."""
        self.device.release(tenant)
        self.host.release(tenant)
        self._changed()

    def _changed(self) -> None:
        for tell in self.on_change:
            tell()
