"""The memory that models share on this machine: which device, how large the budget, who else holds some of it.

Owns the ledger and what is known about the device. What fits is decided in `server.placement`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from server import gpu, host
from server.ledger import Ledger
from server.sizes import format_size
from server.status import MemoryStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.footprint import Device
    from server.config import MemorySection

CPU_SHARE: Final = 0.8
"""Of the available host memory, because other programs' needs change."""
LEAST_AUTO_BYTES: Final = 512 * 2**20
"""An automatic budget is never smaller, so that a small model always runs."""
LOOK_EVERY_S: Final = 10.0
_POLL_S: Final = 0.1


class DeviceError(Exception):
    """The configured device cannot be used; the message is a sentence for the operator."""


class Memory:
    """One budget on one device."""

    def __init__(self, device: Device, budget_bytes: int, *, device_total_bytes: int, free_bytes: int) -> None:
        self.device: Device = device
        self.ledger = Ledger(budget_bytes)
        self._device_total_bytes = device_total_bytes
        self._last_free_bytes = free_bytes

    @property
    def other_bytes(self) -> int:
        """What other programs hold, as of the last look."""
        if self.device == "cpu":
            self._last_free_bytes = host.available_bytes()
        used = self._device_total_bytes - self._last_free_bytes
        return max(0, used - self.ledger.reserved_bytes)

    def status(self) -> MemoryStatus:
        """The budget at this moment."""
        return MemoryStatus(
            device=self.device,
            budget_bytes=self.ledger.budget_bytes,
            reserved_bytes=self.ledger.reserved_bytes,
            other_bytes=self.other_bytes,
        )

    async def keep_looking(self) -> None:
        """Look at the card every now and then, until cancelled; while it does not answer, the last figure stands."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            with contextlib.suppress(gpu.GpuError):
                self._last_free_bytes = (await gpu.memory()).free_bytes

    async def wait_for_free(
        self, needed_bytes: int, *, within_s: float, clock: Callable[[], float] = time.monotonic
    ) -> bool:
        """Wait until the card really has the bytes: a driver returns them some time after a process has exited.

        True at once on the CPU, where the kernel has them back when the process is reaped.
        """
        if self.device == "cpu":
            return True
        deadline = clock() + within_s
        while True:
            try:
                self._last_free_bytes = (await gpu.memory()).free_bytes
            except gpu.GpuError:
                return True  # the load itself will tell
            if self._last_free_bytes >= needed_bytes:
                return True
            if clock() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)


async def open_memory(settings: MemorySection) -> Memory:
    """Choose the device and the budget. Raises DeviceError."""
    card = None
    if settings.device == "cuda" or (settings.device == "auto" and gpu.engine_has_cuda()):
        try:
            card = await gpu.memory()
        except gpu.GpuError as error:
            if settings.device == "cuda":
                raise DeviceError(f"device = 'cuda', but {error}. hint: device = 'cpu'") from None
    if card is not None:
        auto = max(card.free_bytes - settings.reserve, 0)
        budget = auto if settings.budget == "auto" else _at_most(settings.budget, card.total_bytes, card.name)
        return Memory("cuda", budget, device_total_bytes=card.total_bytes, free_bytes=card.free_bytes)
    available, total = host.available_bytes(), host.total_bytes()
    auto = max(int(available * CPU_SHARE) - settings.reserve, min(LEAST_AUTO_BYTES, available))
    budget = auto if settings.budget == "auto" else settings.budget
    return Memory("cpu", budget, device_total_bytes=total, free_bytes=available)


def _at_most(budget_bytes: int, total_bytes: int, name: str) -> int:
    if budget_bytes > total_bytes:
        raise DeviceError(
            f"budget = {format_size(budget_bytes)}, but {name} has {format_size(total_bytes)}. hint: budget = 'auto'"
        )
    return budget_bytes
