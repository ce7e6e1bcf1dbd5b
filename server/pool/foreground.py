"""What clients wait for right now, beside what runs in the background: told to those who make way for it.

For the event loop's thread only; times are seconds on the pool's clock.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Foreground:
    """Counts the jobs that clients wait for."""

    def __init__(self) -> None:
        self._n_live = 0
        self._quiet_since = -math.inf
        self.on_job: list[Callable[[str, bool], None]] = []
        """Called with a new job's model, and whether it has to wait for its turn."""

    def begun(self, model: str, *, waits: bool) -> None:
        """A job has come."""
        self._n_live += 1
        for listener in self.on_job:
            listener(model, waits)

    def ended(self, now: float) -> None:
        """One that had come has ended."""
        self._n_live -= 1
        self._quiet_since = now

    def quiet_s(self, now: float) -> float:
        """How long nothing has been waited for; 0 while something is."""
        return 0.0 if self._n_live else max(0.0, now - self._quiet_since)
