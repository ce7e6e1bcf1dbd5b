"""One worker process with its imports done and no model in it, so that a load does not wait for Python's start.

Owns that process from its start until a load takes it. It holds no device memory, and its host memory is paid from the
`reserve`, not from the models' budget. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from backends.child import Child, start_child
from backends.messages import Report, Warm
from server.memory import host

_LOG = logging.getLogger("onecard.spare")
_LINGER_S: Final = 1.0
_LOAD_ENDED: Final = frozenset({"loaded", "load_failed", "load_refused", "unloaded"})


@dataclass(frozen=True)
class SpareRules:
    """When a spare is started, in seconds and bytes."""

    settle_s: float = 0.02
    """After a load: the first tokens come first."""
    back_off_s: float = 1.0
    """After a spare that died by itself; doubled each time."""
    longest_back_off_s: float = 60.0
    least_available_bytes: int = 256 * 2**20
    """With less host memory available there is no spare."""


class Spare:
    """At most one process. `enabled` false: none, ever."""

    def __init__(self, backend: str, *, enabled: bool, rules: SpareRules = SpareRules()) -> None:
        self._backend = backend
        self._rules = rules
        self._child: Child | None = None
        self._resident_bytes: int | None = None
        self._n_deaths = 0
        self._loading: set[object] = set()
        self._closed = not enabled
        self._timer: asyncio.TimerHandle | None = None
        self._starter: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    # What others may know

    @property
    def pid(self) -> int | None:
        """The waiting process; None when there is none."""
        return self._child.pid if self._child is not None else None

    @property
    def warm(self) -> bool:
        """Its imports are done."""
        return self._resident_bytes is not None

    @property
    def resident_bytes(self) -> int:
        """Anonymous memory of the waiting process, by its own account; 0 until its imports are done."""
        return self._resident_bytes or 0

    # What happens

    def take(self, backend: str) -> Child | None:
        """The waiting process, for a load with that backend; from now on it is the caller's."""
        child = self._child
        if child is None or child.reaped or backend != self._backend:
            return None
        if self._watcher is not None:
            self._watcher.cancel()
        self._forget()
        return child

    def on_change(self, what: str, figures: dict[str, object]) -> None:
        """What the pool tells of loads: none is slowed by the start of a spare."""
        model = figures.get("model")
        if what == "loading":
            self._loading.add(model)
            self._cancel_timer()
        elif what in _LOAD_ENDED:
            self._loading.discard(model)
            self.prepare(after_s=self._rules.settle_s)

    def prepare(self, *, after_s: float = 0.0) -> None:
        """See to it that there is a spare, when no load is under way."""
        if self.started or self._loading or self._closed:
            return
        self._timer = asyncio.get_running_loop().call_later(max(after_s, self._back_off_s()), self._begin)

    @property
    def started(self) -> bool:
        """There is a process, or one is about to be."""
        return self._child is not None or self._starter is not None or self._timer is not None

    async def close(self) -> None:
        """No spare any more; nothing of it is left on return."""
        self._closed = True
        self._cancel_timer()
        if self._starter is not None:
            await asyncio.wait({self._starter})
        if self._child is not None:
            self._child.kill()
        if self._watcher is not None:
            await asyncio.wait({self._watcher})

    # As the owner of the process

    def received(self, report: Report) -> None:
        """The imports are done."""
        if isinstance(report, Warm) and self._child is not None:
            self._resident_bytes = report.resident_bytes
            self._n_deaths = 0
            _LOG.debug("spare_ready pid=%s resident_bytes=%s", self.pid, report.resident_bytes)

    def babbled(self) -> None:
        """It is broken."""
        if self._child is not None:
            self._child.kill()

    def disconnected(self) -> None:
        """It is dying, or has to."""
        self.babbled()

    # How

    def _begin(self) -> None:
        self._timer = None
        self._starter = asyncio.create_task(self._start())

    async def _start(self) -> None:
        """Never cancelled: a process that is half started could not be ended."""
        try:
            if host.available_bytes() >= self._rules.least_available_bytes:
                self._keep(await start_child(self, warm=self._backend))
        except OSError as error:  # the next load itself will tell
            _LOG.warning("spare_refused reason=%s", error.strerror)
        finally:
            self._starter = None

    def _keep(self, child: Child) -> None:
        self._child = child
        self._watcher = asyncio.create_task(self._watch(child))

    async def _watch(self, child: Child) -> None:
        """Replace a spare that ends by itself."""
        status = await child.wait(_LINGER_S)
        if self._child is child:
            self._forget()
            self._n_deaths += 1
            if not self._closed:
                _LOG.warning("spare_ended status=%d deaths=%d", status, self._n_deaths)
                self.prepare()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _forget(self) -> None:
        self._child = None
        self._resident_bytes = None

    def _back_off_s(self) -> float:
        if self._n_deaths == 0:
            return 0.0
        return float(min(self._rules.back_off_s * 2 ** min(self._n_deaths - 1, 16), self._rules.longest_back_off_s))
