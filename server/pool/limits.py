"""The scheduler's rules as the configuration states them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.scheduling.scheduler import ModelRules, Rules, SwapRules

if TYPE_CHECKING:
    from server.settings.catalog import CatalogEntry
    from server.settings.config import Settings


def model_rules(entry: CatalogEntry) -> ModelRules:
    """Those of one model."""
    config = entry.config
    return ModelRules(
        entry.name,
        parallel=config.parallel,
        keep_alive_s=config.keep_alive_s,
        pinned=config.pinned,
        priority=config.priority,
    )


def rules(settings: Settings) -> Rules:
    """Those of all."""
    return Rules(
        max_queue=settings.server.max_queue,
        request_timeout_s=settings.server.request_timeout_s,
        swaps=SwapRules(
            max_wait_s=settings.scheduler.max_wait_s,
            min_residency_s=settings.scheduler.min_residency_s,
            relieve=settings.memory.on_pressure == "unload",
        ),
    )
