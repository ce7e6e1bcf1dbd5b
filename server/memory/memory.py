"""The memory that models share on this machine: which device, how large the budget, who else holds some of it.

Owns the ledger and what is known about the device. What fits is decided in `server.memory.placement`. Cached prefixes
lie in host memory: on the CPU that is the models' memory, so they are in the same books and yield to models.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends import host
from server.memory import gpu, unused_card
from server.memory.ledger import Ledger
from server.memory.prefix_cache import PrefixCache, open_prefix_cache
from server.pool.status import MemoryStatus
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.messages import Store
    from backends.plan import Device
    from server.settings.config import MemorySection

CPU_SHARE: Final = 0.8
"""Of the available host memory, because other programs' needs change."""
LEAST_AUTO_BYTES: Final = 512 * 2**20
"""An automatic budget is never smaller, so that a small model always runs."""
PREFIX_CACHE_SHARE: Final = 1 / 16
"""Of the available host memory, for cached prefixes."""
MOST_AUTO_PREFIX_CACHE: Final = 8 * 2**30
_CONFIRMED_WITHIN_S: Final = 10.0
"""For workers to let cached prefixes go: a step may be under way."""
LOOK_EVERY_S: Final = 2.0
LEAST_CHANGE: Final = 1 / 64
"""An automatic budget follows the device in steps of at least this share of itself, so that noise changes nothing."""
SAY_EVERY_S: Final = 60.0
"""That the figures cannot be read."""
_POLL_S: Final = 0.1
_LOG = logging.getLogger("onecard.memory")


class DeviceError(Exception):
    """The configured device cannot be used; the message is a sentence for the operator."""


class Memory:
    """One budget on one device. `auto` makes a budget of the bytes that models may have; None keeps it as it is."""

    def __init__(
        self,
        device: Device,
        budget_bytes: int,
        *,
        device_total_bytes: int,
        free_bytes: int,
        device_name: str = "",
        warnings: Sequence[str] = (),
        auto: Callable[[int], int] | None = None,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.device: Device = device
        self.ledger = Ledger(budget_bytes)
        self.prefix_cache = prefix_cache or PrefixCache(None, 0)
        self.on_budget_change: list[Callable[[], None]] = []
        """Called after the budget has changed."""
        self.pids: Callable[[], list[int]] = list
        """The worker processes there are."""
        self._device_total_bytes = device_total_bytes
        self._device_name = device_name
        self._warnings = list(warnings)
        self._last_free_bytes = free_bytes
        self._auto = auto
        self._promised: list[int] = []
        """To loads that are about to be booked."""
        self._books_changed = asyncio.Event()
        self.ledger.on_change.append(self._books_changed.set)

    @property
    def other_bytes(self) -> int:
        """What other programs hold, as of the last look."""
        if self.device == "cpu":
            self._last_free_bytes = host.available_bytes()
        used = self._device_total_bytes - self._last_free_bytes
        ours = self.prefix_cache.used_bytes if self.device == "cpu" else 0
        return max(0, used - self.ledger.reserved_bytes - ours)

    def release(self, model: str) -> None:
        """Give a model's bytes back: its worker has exited, or there was none."""
        self.ledger.release(model)
        self.prefix_cache.leave(model)
        self.share_out()

    def close(self) -> None:
        """Leave nothing behind; only once no worker is left."""
        self.prefix_cache.close()
        self._book()

    # Cached prefixes

    @property
    def _room(self) -> int:
        """What they may take: the cap, and on the CPU no more than models leave."""
        cap = self.prefix_cache.max_bytes
        return cap if self.device != "cpu" else min(cap, max(0, self.ledger.free_bytes - sum(self._promised)))

    def share_out(self) -> None:
        """What models hold has changed: share what they leave out among cached prefixes."""
        self.prefix_cache.fit(self._room)
        self._book()

    def store_for(self, model: str) -> Store | None:
        """Where the worker of a model that is booked may keep cached prefixes; `share_out` may give it more later."""
        store = self.prefix_cache.join(model, self._room)
        self._book()
        return store

    def on_keeps(self, model: str, n_bytes: int) -> None:
        """A worker holds no more than that of cached prefixes."""
        self.prefix_cache.confirm(model, n_bytes)
        self.share_out()

    async def make_room(self, n_bytes: int, *, within_s: float = _CONFIRMED_WITHIN_S) -> None:
        """Let cached prefixes leave until a model of so many bytes can be booked, or cannot be, or the time is over.

        Every change of the books is looked at: a worker that confirmed, one that ended instead, a budget that moved.
        """
        if self.device != "cpu" or n_bytes > self.ledger.free_bytes:
            return
        self._promised.append(n_bytes)
        try:
            self.share_out()
            async with asyncio.timeout(within_s):
                while self.ledger.unreserved_bytes < n_bytes <= self.ledger.free_bytes:
                    self._books_changed.clear()
                    await self._books_changed.wait()
        except TimeoutError:
            _LOG.warning("prefix_cache_stay reason=%r", "a worker did not confirm in time that it keeps less")
        finally:
            self._promised.remove(n_bytes)

    def before_leaving(self, model: str, *, for_bytes: int) -> None:
        """A worker is about to end to make room for so many bytes: what would have to leave memory goes to its disk."""
        booking = self.ledger.booking(model)
        freed = booking.booked_bytes if booking is not None else 0
        room = self.prefix_cache.max_bytes
        if self.device == "cpu":
            room = min(room, self.ledger.free_bytes + freed - for_bytes)
        n_loaded = max(0, self.prefix_cache.n_loaded - 1) + bool(for_bytes)
        self.prefix_cache.before_leaving(model, room, n_loaded=n_loaded)

    def _book(self) -> None:
        if self.device == "cpu":
            self.ledger.book_prefix_cache(self.prefix_cache.booked_bytes)

    def status(self) -> MemoryStatus:
        """The budget at this moment."""
        return MemoryStatus(
            device=self.device,
            budget_bytes=self.ledger.budget_bytes,
            reserved_bytes=self.ledger.reserved_bytes,
            other_bytes=self.other_bytes,
            over_bytes=self.ledger.over_bytes,
            prefix_cache_bytes=self.prefix_cache.used_bytes,
            prefix_cache_reserved_bytes=self.ledger.prefix_cache_bytes,
            prefix_cache_max_bytes=self.prefix_cache.max_bytes,
            device_name=self._device_name,
            device_total_bytes=self._device_total_bytes,
            warnings=self._warnings,
        )

    async def keep_looking(self, *, every_s: float = LOOK_EVERY_S) -> None:
        """Look at the device every now and then, until cancelled; while it does not answer, the last figure stands."""
        silent_until = 0.0
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except gpu.GpuError:
                continue
            except OSError as error:
                if time.monotonic() >= silent_until:
                    silent_until = time.monotonic() + SAY_EVERY_S
                    hint = "raise ulimit -n" if error.errno in (errno.EMFILE, errno.ENFILE) else "it is tried again"
                    _LOG.warning("budget_unread reason=%r hint=%r", error.strerror, hint)
            except Exception:  # a fault of ours must not leave the budget as it is for ever
                _LOG.exception("budget_error")

    async def look(self) -> None:
        """Read the free memory once, and let an automatic budget follow it. Raises gpu.GpuError."""
        self._last_free_bytes = host.available_bytes() if self.device == "cpu" else (await gpu.memory()).free_bytes
        if self._auto is None:
            return
        held_bytes = self._held_bytes()
        if held_bytes is None:
            return
        budget_bytes = self._auto(self._last_free_bytes + held_bytes)  # what models hold is not free, and yet theirs
        if abs(budget_bytes - self.ledger.budget_bytes) >= LEAST_CHANGE * self.ledger.budget_bytes:
            self.ledger.resize(budget_bytes)
            self.share_out()
            for tell in self.on_budget_change:
                tell()

    def _held_bytes(self) -> int | None:
        """By how much models lessen what the device calls free; None while a load changes it from moment to moment."""
        if self.device == "cpu":  # mapped weights are page cache, which the kernel calls available
            return sum(host.anonymous_bytes(pid) for pid in self.pids()) + self.prefix_cache.used_bytes
        return self.ledger.measured_bytes

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


async def open_memory(settings: MemorySection, *, n_models: int = 0) -> Memory:
    """Choose the device and the budget, and what so many models may keep beside it. Raises DeviceError."""
    card, driver_error = None, None
    if settings.device == "cuda" or (settings.device == "auto" and unused_card.engine_has_cuda()):
        try:
            card = await gpu.memory()
        except gpu.GpuError as error:
            if settings.device == "cuda":
                raise DeviceError(f"device = 'cuda', but {error}. hint: device = 'cpu'") from None
            driver_error = str(error)
    warnings = unused_card.warnings(
        unused_card.probe(settings.device, "cpu" if card is None else "cuda", driver_error=driver_error)
    )
    if card is not None:
        return _on_card(settings, card, _prefix_cache(settings, n_models), warnings)
    prefix_cache = _prefix_cache(settings, n_models)
    available = host.available_bytes()
    auto = _auto_on_host(settings.reserve)
    return Memory(
        "cpu",
        auto(available) if settings.budget == "auto" else settings.budget,
        device_total_bytes=host.total_bytes(),
        free_bytes=available,
        warnings=warnings,
        auto=auto if settings.budget == "auto" else None,
        prefix_cache=prefix_cache,
    )


def _prefix_cache(settings: MemorySection, n_models: int) -> PrefixCache:
    """Where cached prefixes are kept; nothing where there are no models to load."""
    if n_models == 0:
        return PrefixCache(None, 0)
    automatic = min(int(host.available_bytes() * PREFIX_CACHE_SHARE), MOST_AUTO_PREFIX_CACHE)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return open_prefix_cache(
        automatic if settings.prefix_cache == "auto" else settings.prefix_cache,
        n_models=n_models,
        disk_root=cache / "onecard" / "prefix_cache",
        disk_bytes=settings.prefix_cache_disk,
    )


def _on_card(
    settings: MemorySection, card: gpu.GpuMemory, prefix_cache: PrefixCache, warnings: Sequence[str]
) -> Memory:
    def auto(usable_bytes: int) -> int:
        return max(usable_bytes - settings.reserve, 0)

    automatic = settings.budget == "auto"
    budget = auto(card.free_bytes) if settings.budget == "auto" else settings.budget
    return Memory(
        "cuda",
        _at_most(budget, card.total_bytes, card.name),
        device_total_bytes=card.total_bytes,
        free_bytes=card.free_bytes,
        device_name=card.name,
        warnings=warnings,
        auto=auto if automatic else None,
        prefix_cache=prefix_cache,
    )


def _auto_on_host(reserve_bytes: int) -> Callable[[int], int]:
    def auto(usable_bytes: int) -> int:
        return max(int(usable_bytes * CPU_SHARE) - reserve_bytes, min(LEAST_AUTO_BYTES, usable_bytes))

    return auto


def _at_most(budget_bytes: int, total_bytes: int, name: str) -> int:
    if budget_bytes > total_bytes:
        raise DeviceError(
            f"budget = {format_size(budget_bytes)}, but {name} has {format_size(total_bytes)}. hint: budget = 'auto'"
        )
    return budget_bytes
