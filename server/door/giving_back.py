"""Gives the memory of large bodies back to the system: a C library keeps what was freed, each thread's arena its own.

Knows nothing of requests but how many bytes they brought and took.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

from backends.machine.kernel import give_back_freed

LARGE_BYTES: Final = 1 << 20
"""From here on a request leaves something worth giving back."""
_SETTLED_S: Final = 0.5
"""So that a burst is cleaned up after once."""


class GivingBack:
    """Of one application; for the event loop's thread."""

    def __init__(self) -> None:
        self._due: asyncio.TimerHandle | None = None

    def after(self, n_bytes: int) -> None:
        """A request that moved so many bytes has ended."""
        if n_bytes >= LARGE_BYTES and self._due is None:
            self._due = asyncio.get_running_loop().call_later(_SETTLED_S, self._begin)

    def _begin(self) -> None:
        self._due = None
        gc.collect()  # what refused a body is in cycles with it; everything from before the start is frozen
        asyncio.get_running_loop().run_in_executor(None, give_back_freed)
