"""What happens to models and jobs, told in one place: a log line each, and a message to every listener."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.scheduling.decisions import Drain, Unload

_LOG = logging.getLogger("onecard.pool")
_WARNINGS = (
    *("prefix_cache_off", "crashed", "load_failed", "load_refused", "preload_skipped", "unusable"),
    "config_refused",
)


class EventLog:
    """`on_change` is called with the name and the figures of everything that is also logged."""

    def __init__(self) -> None:
        self.on_change: list[Callable[[str, dict[str, object]], None]] = []

    def tell(self, what: str, **figures: object) -> None:
        """Something has happened."""
        level = logging.WARNING if what in _WARNINGS else logging.INFO
        _LOG.log(level, "%s %s", what, " ".join(f"{key}={_quoted(value)}" for key, value in figures.items()))
        for listener in self.on_change:
            listener(what, figures)


def why(action: Drain | Unload) -> dict[str, object]:
    """Why a model leaves, and for which other."""
    return {"reason": action.reason, **({"for": action.beneficiary} if action.beneficiary else {})}


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and not set(text) & set(' "=\n') else json.dumps(text)
