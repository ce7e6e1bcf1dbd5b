"""The memories of a machine that is not this one: a card that is planned with and not there.

`onecard fit --device cuda --budget 12GiB --host-budget 32GiB` is asked before a card is bought, or on another machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.machine import host
from backends.plan import Amount
from server.memory import gpu
from server.memory.memory import Memory
from server.memory.opening import CPU_SHARE, DeviceError, open_memory

if TYPE_CHECKING:
    from server.settings.sections import MemorySection


async def memory_to_plan_with(settings: MemorySection) -> tuple[Memory, bool]:
    """This machine's memories, or those that were written down of another one; and whether it is another.

    It is another where a card is asked for with its budget, and the driver tells of none. Raises DeviceError.
    """
    if settings.device != "cuda":
        return await open_memory(settings), False
    try:
        await gpu.memory()
    except gpu.GpuError as problem:
        if settings.budget == "auto":
            hint = "--budget 11GiB plans for a card that is not here, with so much for models"
            raise DeviceError(f"device = 'cuda', but {problem}. hint: {hint}") from None
        host_bytes = int(CPU_SHARE * host.available_bytes()) if settings.host_budget == "auto" else settings.host_budget
        budget = Amount(settings.budget, host_bytes)
        return Memory("cuda", budget, total=budget, device_free_bytes=settings.budget), True
    return await open_memory(settings), False
