"""One load, step by step: look at the file, choose a plan, book its bytes, start the worker.

Owns what is known about the models' files. When to load is the scheduler's business, what happens after is the pool's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from backends.backend import Header, HeaderError
from backends.crash_reason import REASON_CHARS, clean
from backends.messages import ErrorCode, LoadModel, Ready
from backends.plan import LoadPlan
from backends.registry import kind_giving
from backends.worker import Listener, Timeouts, Worker
from server.memory.capacity import Asked, Capacity, appraise
from server.memory.estimator import Estimator, Looked, key_of, likely_plans, look, wish
from server.memory.ledger import LedgerError
from server.memory.placement import Placed, Refused, place, sums
from server.memory.reader import Reader
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backends.child import Copier
    from backends.plan import Footprint
    from server.memory.estimates import FileKey
    from server.memory.memory import Memory
    from server.scheduling.eviction import Candidate
    from server.settings.catalog import CatalogEntry

LIMIT_SPARE_BYTES: Final = 2 * 2**30
"""Of a load, beyond what is estimated."""
FREE_WITHIN_S: Final = 10.0
"""How long a card may take to give back what an exited worker held."""


_NOT_THERE: Final[FileKey] = (0, 0, 0)


def _state_of(entry: CatalogEntry) -> FileKey:
    try:
        return key_of(entry)
    except OSError:
        return _NOT_THERE


class LoadRefusedError(Exception):
    """A load that did not get as far as a worker. `strike` tells whether it counts as a failure of the model."""

    def __init__(self, code: ErrorCode, message: str, *, strike: bool) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.strike = strike


class Loader:
    """See the module's text."""

    def __init__(self, memory: Memory, timeouts: Timeouts, template_processes: Mapping[str, Copier]) -> None:
        self.memory = memory
        self._template_processes = template_processes
        self._timeouts = timeouts
        self.estimator = Estimator()
        self._reader = Reader()
        self._known: dict[str, Looked] = {}
        self._problems: dict[str, str] = {}

    def state_now(self, entry: CatalogEntry) -> FileKey | None:
        """What tells one state of a model's files from another; None where their disk does not answer at once."""
        return self._reader.at_once(entry.name, lambda: _state_of(entry))

    def known(self, name: str) -> tuple[Header | None, str | None]:
        """What the last look at a model's file gave: its header, or what is wrong with it."""
        known = self._known.get(name)
        return (known.header if known else None), self._problems.get(name)

    async def inspect(self, entry: CatalogEntry) -> Header:
        """The header of the model's file, read again when the file has changed. Raises LoadRefusedError."""
        before = self._known.get(entry.name)
        try:
            after = await self._reader.read(entry.name, lambda: look(entry, before))
        except HeaderError as error:
            self._known.pop(entry.name, None)
            self._problems[entry.name] = str(error)
            raise LoadRefusedError(
                "load_failed",
                f"model '{entry.name}' cannot be loaded: {clean(str(error), most_chars=REASON_CHARS)}",
                strike=True,
            ) from None
        self._known[entry.name] = after
        self._problems.pop(entry.name, None)
        return after.header

    async def start(
        self, entry: CatalogEntry, listener: Listener, *, usable_bytes: int | None = None, smaller_by: int = 0
    ) -> Worker:
        """Start a worker for the model; its bytes are booked until `memory.release`. Raises LoadRefusedError.

        The plan is chosen for `usable_bytes` (None: the whole budget), and has to fit into what is free.
        """
        await self.inspect(entry)
        placed = self.quote(entry, usable_bytes=usable_bytes, smaller_by=smaller_by)
        assert placed is not None
        if isinstance(placed, Refused):
            raise LoadRefusedError(placed.code, placed.message, strike=False)
        await self.memory.make_room(placed.footprint.total_bytes)
        try:
            self.memory.ledger.reserve(entry.name, placed.footprint)
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

    def quote(
        self, entry: CatalogEntry, *, usable_bytes: int | None = None, smaller_by: int = 0
    ) -> Placed | Refused | None:
        """How the model would be loaded if it could have so many bytes; None while its file has not been looked at."""
        known = self._known.get(entry.name)
        if known is None:
            return None
        budget_bytes = self.memory.ledger.budget_bytes
        usable = budget_bytes if usable_bytes is None else usable_bytes
        return place(
            entry.name,
            known.header,
            wish(entry.config, self.memory.device),
            budget_bytes=budget_bytes,
            free_bytes=usable,
            price=self.estimator.price_of(known, within_bytes=usable),
            smaller_by=smaller_by,
        )

    def looked(self, name: str) -> Looked | None:
        """A model's files as of the last look."""
        return self._known.get(name)

    async def capacity(self, entry: CatalogEntry, asked: Asked, residents: Sequence[Candidate]) -> Capacity:
        """What a load would come to with the wishes of the moment; loads nothing. Raises HeaderError."""
        before = self._known.get(entry.name)
        looked = await self._reader.read(entry.name, lambda: look(entry, before))
        ledger = self.memory.ledger
        own = ledger.booking(entry.name)
        return appraise(
            entry.name,
            looked.header,
            asked.over(wish(entry.config, self.memory.device)),
            lambda plan: self.estimator.quote(looked, plan),
            budget_bytes=ledger.budget_bytes,
            free_bytes=ledger.free_bytes + (own.booked_bytes if own is not None else 0),
            residents=residents,
        )

    async def ask_dry(self, entries: Iterable[CatalogEntry]) -> None:
        """Find out the exact prices of the models that have been looked at."""
        seen = [(entry, known) for entry in entries if (known := self._known.get(entry.name)) is not None]
        device = self.memory.device
        await self.estimator.ask_dry([(known, likely_plans(known, wish(e.config, device))) for e, known in seen])

    def learn(self, spec: LoadModel, ready: Ready) -> None:
        """Remember what a load really took; `estimator.save` keeps it."""
        if (known := self._known.get(spec.name)) is not None:
            self.estimator.learn(known, self._plan(spec), ready.measured_bytes)

    def ran_out(self, spec: LoadModel, footprint: Footprint) -> str:
        """Remember that a load ran out of memory: what was planned, in one sentence; `estimator.save` keeps it."""
        plan = self._plan(spec)
        if (known := self._known.get(spec.name)) is not None:
            self.estimator.doubt(known, plan)
        ledger = self.memory.ledger
        left = f"{format_size(ledger.free_bytes)} of {format_size(ledger.budget_bytes)} were free beside it"
        return f"the plan was {sums(Placed(plan, footprint))}; {left}"

    def forget_if_changed(self, entry: CatalogEntry) -> None:
        """Forget what a file held when it is not the same any more: one call of `stat`, made before a refusal."""
        known = self._known.get(entry.name)
        if known is None:
            return
        try:
            key = self._reader.at_once(entry.name, lambda: key_of(entry))
            changed = key is not None and key != known.key
        except OSError:
            changed = True
        if changed:
            del self._known[entry.name]

    def _keeps(self, entry: CatalogEntry) -> bool:
        """Whether its engine computes prompts that can be found again: vectors have no state."""
        known = self._known.get(entry.name)
        return known is not None and "prefix_cache" in kind_giving(known.header.gives).series

    def _plan(self, spec: LoadModel) -> LoadPlan:
        return LoadPlan(spec.context, spec.parallel, spec.kv_type, spec.gpu_layers, self.memory.device, spec.kv_tokens)

    async def _wait_for_card(self, name: str, placed: Placed) -> None:
        needed_bytes = placed.footprint.total_bytes
        if not await self.memory.wait_for_free(needed_bytes, within_s=FREE_WITHIN_S):
            message = f"{name} needs {format_size(needed_bytes)}, but other programs hold the card's memory"
            raise LoadRefusedError("memory_busy", message, strike=False)

    def _limit_bytes(self, entry: CatalogEntry, placed: Placed) -> int:
        """Host memory for a load: files may be in memory twice, and an estimate be wrong, but not by so much.

        0 (no limit) on a card: what its driver maps counts too, and how much that is was never measured.
        """
        if placed.plan.device == "cuda":
            return 0
        known = self._known.get(entry.name)
        file_bytes = max(known.key[0] if known is not None else 0, entry.size_bytes)
        return 2 * (placed.footprint.total_bytes + file_bytes) + LIMIT_SPARE_BYTES

    def _spec(self, entry: CatalogEntry, placed: Placed) -> LoadModel:
        plan = placed.plan
        return LoadModel(
            name=entry.name,
            backend=entry.backend,
            path=str(entry.path),
            context=plan.context,
            parallel=plan.parallel,
            kv_type=plan.kv_type,
            gpu_layers=plan.gpu_layers,
            device=plan.device,
            kv_tokens=plan.kv_tokens,
            kv_layout=plan.kv_layout,
            max_itl_ms=0.0 if entry.config.max_itl_ms == "auto" else entry.config.max_itl_ms,
            store=self.memory.store_for(entry.name) if self._keeps(entry) else None,
            options=entry.config.options_of(entry.backend),
            limit_bytes=self._limit_bytes(entry, placed),
        )
