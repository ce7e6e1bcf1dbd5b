"""What others may see of the pool: status, one model's facts, a waiting job's outlook, the gauges. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from server.memory.capacity import Capacity, WishChange
from server.memory.ledger import Tenant
from server.pool.resident import NO_LONGER
from server.pool.status import MemoryStatus, ModelInfo, QueueStatus, Status, TrainingStatus, memory_status
from server.pool.stream import Waiting
from server.scheduling.budget import Refused
from server.scheduling.decisions import ModelState
from server.scheduling.eviction import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.pool.parts import PoolParts
    from server.pool.resident import Resident
    from server.pool.template_keeper import TemplateKeeper


_BUSY: Final = 1000.0


class Overview:
    """See the module's text."""

    def __init__(self, parts: PoolParts, template_processes: Iterable[TemplateKeeper]) -> None:
        self._parts = parts
        self._template_processes = list(template_processes)
        self.training: Callable[[], TrainingStatus | None] = lambda: None
        """What is told of the fine-tuning job that runs; set by who runs it."""
        self.unknown_names: Callable[[], list[str]] = list
        """What is told of names of the configuration that are no model now; set by who has it."""
        parts.metrics.on_render.append(self._publish)

    def info(self, name: str) -> ModelInfo:
        """What is known of a model; never loads it."""
        parts = self._parts
        if name not in parts.residents:
            gone = NO_LONGER.format(name)
            return ModelInfo(ModelState.UNLOADED, None, None, None, gone, gone)
        state, last_error = parts.scheduler.state(name), parts.scheduler.last_error(name)
        facts, problem = parts.budget.files.facts(name), parts.budget.files.problem(name)
        ready, most = parts.residents[name].ready, parts.budget.most_context(name)
        if facts is None:
            return ModelInfo(state, ready, None, most, last_error or problem, problem)
        told = (last_error or problem, problem, facts.identity, facts.changed_ns)
        return ModelInfo(state, ready, facts.header, most, *told)

    def status(self) -> Status:
        """Everything at this moment; never loads anything."""
        parts, now = self._parts, self._parts.clock()
        ledger, files = parts.memory.ledger if parts.loader else None, parts.budget.files
        on_card = ledger is not None and parts.memory.device == "cuda"
        models = [
            resident.status(
                parts.scheduler.view(name, now),
                ledger.reservation(Tenant(name)) if ledger else None,
                files.problem(name),
                now,
                files.facts(name),
                on_card=on_card,
                loading=self.is_loading(name),
                context_max=parts.budget.most_context(name),
            )
            for name, resident in parts.residents.items()
        ]
        queue = [QueueStatus(model=m.name, waiting=m.waiting) for m in models if m.waiting]
        return Status(self._memory(), models, queue, self.training(), unknown_names=self.unknown_names())

    def why_not_grow(self, name: str, context: int) -> str | None:
        """Why a model whose context grows cannot hold so many tokens, with the sums; None where it could."""
        if context > self._parts.budget.context_bound(name) or name not in self._parts.residents:
            return None
        need = self._parts.budget.need(name, smaller_by=0, context=context)
        return need.message if isinstance(need, Refused) else None

    async def capacity(self, name: str, change: WishChange) -> Capacity:
        """What a load of the model would come to; loads nothing. Raises HeaderError."""
        parts = self._parts
        if name not in parts.residents:
            raise HeaderError(NO_LONGER.format(name))
        return await parts.budget.capacity(parts.residents[name].entry, change, self._may_leave(but=name))

    def _may_leave(self, *, but: str) -> list[Candidate]:
        """The residents in the order in which they are missed least: idle ones first, the longest idle before."""
        parts, now = self._parts, self._parts.clock()
        found = []
        for name, resident in parts.residents.items():
            held = parts.budget.held(name)
            if name != but and held and not resident.entry.config.pinned:
                idle_since = parts.scheduler.view(name, now).idle_since
                score = _BUSY if idle_since is None else 1.0 / (1.0 + max(0.0, now - idle_since))
                found.append(Candidate(name, held, score))
        return found

    def is_loading(self, name: str) -> bool:
        """Whether a load of the model is under way."""
        return self._parts.scheduler.state(name) is ModelState.LOADING

    def outlook(self, resident: Resident, job_id: str) -> Waiting | None:
        """How long a job may have to wait; None for one that does not."""
        now = self._parts.clock()
        outlook = self._parts.scheduler.outlook(job_id, now)
        if outlook is None:
            return None
        if not self.is_loading(resident.name):
            return Waiting(outlook.position + 1, outlook.wait_s, None)
        return Waiting(outlook.position + 1, resident.load_left_s(now, outlook.wait_s), resident.loaded)

    def _memory(self) -> MemoryStatus:
        if self._parts.loader is None:
            return MemoryStatus(device="", budget_bytes=0, reserved_bytes=0, other_bytes=0)
        n_bytes = sum(process.resident_bytes for process in self._template_processes)
        return memory_status(self._parts.memory, template_process_bytes=n_bytes)

    def _publish(self) -> None:
        """Set the gauges that mirror state, when they are read."""
        parts, now = self._parts, self._parts.clock()
        for name, resident in parts.residents.items():
            view = parts.scheduler.view(name, now)
            resident.metrics.publish(view.state, running=view.running, waiting=view.waiting)
            resident.publish_speed()
        told = self._memory()
        sides = {"device": told, "host": told.host} if told.device == "cuda" else {"host": told.host}
        for memory, side in sides.items():
            if side is not None:
                figures = {"budget": side.budget_bytes, "reserved": side.reserved_bytes, "other": side.other_bytes}
                parts.metrics.publish_memory(told.device, memory, **figures)
        parts.metrics.memory_headroom.set(told.headroom_bytes)
        if told.device:
            parts.metrics.publish_prefix_cache(used=told.prefix_cache_bytes, reserved=told.prefix_cache_reserved_bytes)
