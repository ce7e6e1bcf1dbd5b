"""Opens the memories of this machine: the device, the budgets by the configuration, and who may have what of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from backends.machine import host
from backends.plan import Amount
from server.memory import gpu
from server.memory.hours import HourlyBudget
from server.memory.memory import Follow, Memory
from server.memory.neighbours import Neighbours
from server.memory.prefix_cache import PrefixCache, open_prefix_cache
from server.own_folder import user_folder
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages import Device
    from server.settings.sections import MemorySection

CPU_SHARE: Final = 0.8
"""Of the available host memory, because other programs' needs change."""
LEAST_AUTO_BYTES: Final = 512 * 2**20
"""An automatic budget is never smaller, so that a small model always runs."""
PREFIX_CACHE_SHARE: Final = 1 / 16
"""Of the available host memory, for cached prefixes."""
MOST_AUTO_PREFIX_CACHE: Final = 8 * 2**30
_LOG: Final = logging.getLogger("onecard.memory")


class DeviceError(Exception):
    """The configured device cannot be used; the message is a sentence for the operator."""


async def open_memory(settings: MemorySection, *, n_models: int = 0) -> Memory:
    """Choose the device and the budgets, and what so many models may keep beside them. Raises DeviceError."""
    card, driver_error = None, None
    if settings.device == "cuda" or (settings.device == "auto" and gpu.engine_has_cuda()):
        try:
            card = await gpu.memory()
        except gpu.GpuError as error:
            if settings.device == "cuda":
                raise DeviceError(f"device = 'cuda', but {error}. hint: device = 'cpu'") from None
            driver_error = str(error)
    device: Device = "cpu" if card is None else "cuda"
    warnings = gpu.unused_warnings(gpu.probe(settings.device, device, driver_error=driver_error))
    total_bytes, available_bytes = host.total_bytes(), host.available_bytes()
    host_budget, most = settings.host_budget, None
    if host_budget != "auto":
        _check("host_budget", host_budget, total_bytes, "this machine")
        most = host_budget
    auto = _auto_on_host(0 if card is not None else settings.reserve, most)
    prefix_cache = _prefix_cache(settings, n_models)
    fixed = None if settings.budget == "auto" else settings.budget
    moves = fixed is None or bool(settings.hours)
    if settings.headroom not in ("auto", 0) and (card is None or fixed is not None):
        why = "no card is used" if card is None else "budget is fixed, and follows no other program"
        _LOG.warning("headroom_unused reason=%r", why)
    if card is None:
        allowed = HourlyBudget(auto, settings.hours, fixed=fixed if fixed is None or most is None else min(fixed, most))
        return Memory(
            "cpu",
            Amount(host=allowed(available_bytes)),
            total=Amount(host=total_bytes),
            warnings=warnings,
            follow=Follow(host=allowed if moves else None),
            withheld=Amount(host=allowed.withheld(available_bytes)),
            prefix_cache=prefix_cache,
        )
    on_card = HourlyBudget(_auto_on_card(settings.reserve), settings.hours, fixed=fixed)
    for key, n_bytes in (("budget", settings.budget), ("headroom", settings.headroom)):
        if n_bytes != "auto":
            _check(key, n_bytes, card.total_bytes, card.name)
    return Memory(
        "cuda",
        Amount(
            on_card(card.free_bytes),
            auto(available_bytes) if most is None else most,
        ),
        total=Amount(card.total_bytes, total_bytes),
        device_free_bytes=card.free_bytes,
        device_name=card.name,
        warnings=warnings,
        follow=Follow(on_card if moves else None, HourlyBudget(auto, {}, fixed=None) if most is None else None),
        prefix_cache=prefix_cache,
        withheld=Amount(on_card.withheld(card.free_bytes)),
        neighbours=_neighbours(settings, card.total_bytes),
    )


def _neighbours(settings: MemorySection, total_bytes: int) -> Neighbours:
    """Nothing is held back for them from a budget that the operator wrote."""
    headroom = 0 if settings.budget != "auto" else None if settings.headroom == "auto" else settings.headroom
    return Neighbours(total_bytes, headroom, reserve_bytes=settings.reserve)


def _prefix_cache(settings: MemorySection, n_models: int) -> PrefixCache:
    """Where cached prefixes are kept; nothing where there are no models to load."""
    if n_models == 0:
        return PrefixCache(None, 0)
    automatic = min(int(host.available_bytes() * PREFIX_CACHE_SHARE), MOST_AUTO_PREFIX_CACHE)
    return open_prefix_cache(
        automatic if settings.prefix_cache == "auto" else settings.prefix_cache,
        n_models=n_models,
        disk_root=user_folder("XDG_CACHE_HOME", "~/.cache") / "prefix_cache",
        disk_bytes=settings.prefix_cache_disk,
    )


def _auto_on_card(reserve_bytes: int) -> Callable[[int], int]:
    return lambda usable_bytes: max(usable_bytes - reserve_bytes, 0)


def _auto_on_host(reserve_bytes: int, most_bytes: int | None) -> Callable[[int], int]:
    def auto(usable_bytes: int) -> int:
        budget_bytes = max(int(usable_bytes * CPU_SHARE) - reserve_bytes, min(LEAST_AUTO_BYTES, usable_bytes))
        return budget_bytes if most_bytes is None else min(budget_bytes, most_bytes)

    return auto


def _check(key: str, n_bytes: int, total_bytes: int, name: str) -> None:
    if n_bytes > total_bytes:
        raise DeviceError(
            f"{key} = {format_size(n_bytes)}, but {name} has {format_size(total_bytes)}. hint: {key} = 'auto'"
        )
