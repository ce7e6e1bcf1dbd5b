"""What others may see of the pool: status, one model's facts, a waiting job's outlook, the gauges. Changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.memory.capacity import Asked, Capacity, who_may_leave
from server.pool.status import MemoryStatus, ModelInfo, QueueStatus, Status
from server.pool.stream import Waiting
from server.scheduling.decisions import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.pool.parts import Parts
    from server.pool.resident import Resident
    from server.pool.template_process import TemplateProcess


class Overview:
    """See the module's text."""

    def __init__(self, parts: Parts, template_processes: Iterable[TemplateProcess]) -> None:
        self._parts = parts
        self._template_processes = list(template_processes)
        parts.metrics.on_render.append(self._publish)

    def info(self, name: str) -> ModelInfo:
        """What is known of a model; never loads it."""
        parts = self._parts
        view = parts.scheduler.view(name, parts.clock())
        header, problem = parts.loader.known(name) if parts.loader else (None, None)
        return ModelInfo(view.state, parts.residents[name].ready, header, view.last_error or problem, problem)

    def status(self) -> Status:
        """Everything at this moment; never loads anything."""
        parts, now = self._parts, self._parts.clock()
        loader = parts.loader
        models = [
            resident.status(
                parts.scheduler.view(name, now),
                loader.memory.ledger.booking(name) if loader else None,
                loader.known(name)[1] if loader else None,
                now,
                loader.known(name)[0] if loader else None,
            )
            for name, resident in parts.residents.items()
        ]
        queue = [QueueStatus(model=m.name, waiting=m.waiting) for m in models if m.waiting]
        return Status(memory=self._memory(), models=models, queue=queue)

    async def capacity(self, name: str, asked: Asked) -> Capacity:
        """What a load of the model would come to; loads nothing. Raises HeaderError."""
        parts = self._parts
        residents = who_may_leave(self.status().models, parts.prices.held_bytes, but=name)
        assert parts.loader is not None
        return await parts.loader.capacity(parts.residents[name].entry, asked, residents)

    def is_loading(self, name: str) -> bool:
        """Whether a load of the model is under way."""
        return self._parts.scheduler.view(name, self._parts.clock()).state is ModelState.LOADING

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
        return self._parts.loader.memory.status().beside(
            sum(process.resident_bytes for process in self._template_processes)
        )

    def _publish(self) -> None:
        """Set the gauges that mirror state, when they are read."""
        parts, now = self._parts, self._parts.clock()
        for name, resident in parts.residents.items():
            view = parts.scheduler.view(name, now)
            resident.metrics.publish(view.state, running=view.running, waiting=view.waiting)
        memory = self._memory()
        if memory.device:
            parts.metrics.publish_memory(memory)
