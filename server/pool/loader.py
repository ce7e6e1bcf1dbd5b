"""One load, step by step: look at the file, choose a plan, reserve its bytes, start the worker.

When to load is the scheduler's business, what happens after is the pool's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.border.worker import Listener, Timeouts, Worker
from backends.machine.crash_reason import REASON_CHARS, clean
from backends.messages import DraftFiles, ErrorCode, LoadModel, Ready
from backends.plan import Amount
from backends.registry import kind_giving
from server.memory.ledger import LedgerError, Measured, Tenant
from server.memory.placement import Placed, sums
from server.scheduling.budget import Refused
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.border.child import Copier
    from backends.plan import Footprint
    from server.memory.budget import MemoryBudget
    from server.memory.ledger import Reservation
    from server.memory.memory import Memory
    from server.settings.catalog import CatalogEntry

LIMIT_EXTRA_BYTES: Final = 2 * 2**30
"""Of a load, beyond what is estimated."""
FREE_WITHIN_S: Final = 10.0
"""How long a card may take to give back what an exited worker held."""


class LoadRefusedError(Exception):
    """A load that did not get as far as a worker. `strike` tells whether it counts as a failure of the model."""

    def __init__(self, code: ErrorCode, message: str, *, strike: bool) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.strike = strike


class Loader:
    """See the module's text."""

    def __init__(
        self, memory: Memory, budget: MemoryBudget, timeouts: Timeouts, template_processes: Mapping[str, Copier]
    ) -> None:
        self.memory = memory
        self._budget = budget
        self._template_processes = template_processes
        self._timeouts = timeouts

    async def start(
        self,
        entry: CatalogEntry,
        listener: Listener,
        *,
        usable: Amount | None = None,
        smaller_by: int = 0,
        context: int = 0,
    ) -> Worker:
        """Start a worker for the model; its bytes are reserved until `memory.release`. Raises LoadRefusedError.

        The plan is chosen for `usable` bytes (None: the whole budgets), and has to fit into what is free. `context`:
        tokens that an open one has to hold.
        """
        try:
            await self._budget.files.inspect(entry)
        except HeaderError as error:
            why = clean(str(error), most_chars=REASON_CHARS)
            raise LoadRefusedError(
                "load_failed", f"model '{entry.name}' cannot be loaded: {why}", strike=True
            ) from None
        if self.memory.device == "cuda" and self._budget.speeds.machine(entry.backend) is None:
            await self._budget.measure_speeds()  # where weights lie is chosen by speed
        room = self.memory.ledger.budget if usable is None else usable
        placed = self._budget.place(entry, usable=room, smaller_by=smaller_by, context=context)
        if placed is None:
            told = f"model '{entry.name}' was configured otherwise while its file was looked at"
            raise LoadRefusedError("cancelled", told, strike=False)
        if isinstance(placed, Refused):
            raise LoadRefusedError(placed.code, placed.message, strike=False)
        await self.memory.send_guest_away(placed.footprint.amount)
        await self.memory.make_room(placed.footprint.amount)
        try:
            self.memory.ledger.reserve(_tenant(entry), placed.footprint)
        except LedgerError as error:
            raise LoadRefusedError("memory_busy", str(error), strike=False) from None
        try:
            await self._wait_for_card(entry.name, placed)
            worker = Worker(self._spec(entry, placed), listener, self._timeouts)
            await worker.start(self._template_processes.get(entry.backend))
            self.memory.prefix_cache.listens(entry.name, worker.keep)
        except OSError as error:
            self.memory.release(entry.name)
            message = f"no worker process could be started: {error.strerror}"
            raise LoadRefusedError("load_failed", message, strike=True) from None
        except BaseException:
            self.memory.release(entry.name)
            raise
        return worker

    def settle(self, spec: LoadModel, ready: Ready) -> Reservation:
        """Put what a loaded model takes into the ledger, and remember it; `estimator.save` keeps it."""
        beside = Measured(sum(ready.host_parts.values()), ready.host_parts)
        computes = Measured(ready.measured_bytes, ready.parts)
        device, host = (computes, beside) if self.memory.device == "cuda" else (Measured(), computes)
        if (facts := self._budget.files.facts(spec.name)) is not None:
            self._budget.estimator.learn(facts, spec.plan, Amount(device.n_bytes, host.n_bytes))
        return self.memory.ledger.settle(Tenant(spec.name), device=device, host=host)

    def ran_out(self, spec: LoadModel, footprint: Footprint) -> str:
        """Remember that a load ran out of memory: what was planned, in one sentence; `estimator.save` keeps it."""
        plan = spec.plan
        if (facts := self._budget.files.facts(spec.name)) is not None:
            self._budget.estimator.doubt(facts, plan)
        account = self.memory.account
        left = f"{format_size(account.free_bytes)} of {format_size(account.budget_bytes)} were free beside it"
        return f"the plan was {sums(Placed(plan, footprint))}; {left}"

    def _keeps(self, entry: CatalogEntry) -> bool:
        """Whether its engine computes prompts that can be found again: vectors have no state."""
        facts = self._budget.files.facts(entry.name)
        return facts is not None and "prefix_cache" in kind_giving(facts.header.gives).series

    async def _wait_for_card(self, name: str, placed: Placed) -> None:
        needed = placed.footprint.amount
        if not await self.memory.wait_for_free(needed, within_s=FREE_WITHIN_S):
            message = f"{name} needs {format_size(needed.device)}, but other programs hold the card's memory"
            raise LoadRefusedError("memory_busy", message, strike=False)

    def _limit_bytes(self, entry: CatalogEntry, placed: Placed) -> int:
        """Host memory for a load: files may be in memory twice, and an estimate be wrong, but not by so much.

        0 (no limit) on a card: what its driver maps counts too, and how much that is was never measured.
        """
        if placed.plan.device == "cuda":
            return 0
        facts = self._budget.files.facts(entry.name)
        file_bytes = max(facts.key[0] if facts is not None else 0, entry.size_bytes)
        return 2 * (placed.footprint.amount.host + file_bytes) + LIMIT_EXTRA_BYTES

    def _spec(self, entry: CatalogEntry, placed: Placed) -> LoadModel:
        return LoadModel(
            name=entry.name,
            backend=entry.backend,
            path=str(entry.path),
            plan=placed.plan,
            max_itl_ms=0.0 if entry.config.max_itl_ms == "auto" else entry.config.max_itl_ms,
            speculation=entry.config.speculation_mode,
            mtp=entry.config.speculation == "mtp",
            draft=None if entry.draft is None else _draft(entry.draft),
            store=self.memory.store_for(entry.name) if self._keeps(entry) else None,
            options=entry.own_options,
            limit_bytes=self._limit_bytes(entry, placed),
        )


def _draft(entry: CatalogEntry) -> DraftFiles:
    return DraftFiles(entry.name, str(entry.path), entry.own_options)


def _tenant(entry: CatalogEntry) -> Tenant:
    return Tenant(entry.name, priority=entry.config.priority)
