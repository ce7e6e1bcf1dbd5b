"""A reservation that grows as others give bytes back, until it has what it wants: so that nothing takes them before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from backends.plan import Footprint

if TYPE_CHECKING:
    from server.memory.ledger import Account, Ledger, Tenant


class Claim:
    """`n_bytes` of one account: what is free at once, the rest at whatever change of the ledger. Grows inside `with`.

    What is reserved stays reserved behind it; who gives up releases the tenant.
    """

    def __init__(self, ledger: Ledger, account: Account, tenant: Tenant, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.missing_bytes = n_bytes
        self._ledger = ledger
        self._account = account
        self._tenant = tenant

    def __enter__(self) -> Self:
        """Raises LedgerError where the tenant has a reservation."""
        self._ledger.reserve(self._tenant, Footprint())
        self._ledger.on_change.append(self._take)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.on_change.remove(self._take)

    def _take(self) -> None:
        if self.missing_bytes:
            most, self.missing_bytes = self.missing_bytes, 0  # what is taken is a change of the ledger, too
            self.missing_bytes = most - self._account.widen(self._tenant, self._tenant.kind, most)
