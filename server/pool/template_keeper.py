"""A process with its imports done and no model in it, of which workers are made: a load does not wait for Python.

Owns that process, and when there is one. It holds no device memory, and its host memory is paid from the `reserve`, not
from the models' budget. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass

from backends.border import template_process
from backends.border.template_process import TemplateProcessError, UnfitError
from backends.machine import host
from backends.machine.kernel import adopt_orphans

_LOG = logging.getLogger("onecard.template_process")


@dataclass(frozen=True)
class TemplateRules:
    """When a template process is started and how long it may take, in seconds and bytes."""

    back_off_s: float = 1.0
    """After one that died; doubled each time."""
    longest_back_off_s: float = 60.0
    warm_within_s: float = 60.0
    copy_within_s: float = 2.0
    """One that takes longer is stuck: it is killed, and the load starts a process of its own."""
    least_available_bytes: int = 256 * 2**20
    """With less host memory available none is started."""


class TemplateKeeper:
    """At most one process. `enabled` false: none, ever."""

    def __init__(self, backend: str, *, enabled: bool, rules: TemplateRules = TemplateRules()) -> None:
        self._backend = backend
        self._rules = rules
        self._enabled = enabled
        self._closed = not enabled
        self._running: template_process.TemplateProcess | None = None
        self._resident_bytes: int | None = None
        self._n_deaths = 0
        self._timer: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        """It is warm, or there is none to wait for."""
        self._settled.set()

    @property
    def pid(self) -> int | None:
        """Of the process; None when there is none."""
        return self._running.pid if self._running is not None else None

    @property
    def warm(self) -> bool:
        """Its imports are done."""
        return self._resident_bytes is not None

    @property
    def resident_bytes(self) -> int:
        """Anonymous memory of the process, by its own account; 0 until its imports are done."""
        return self._resident_bytes or 0

    @property
    def started(self) -> bool:
        """There is a process, or one is about to be."""
        return self._keeper is not None or self._timer is not None

    def allow(self) -> None:
        """There may be one from now on, where none was enabled; not one that was found unfit."""
        if not self._enabled:
            self._enabled, self._closed = True, False
            self.prepare()

    def prepare(self) -> None:
        """See to it that there is one."""
        if not self.started and not self._closed:
            self._settled.clear()
            self._timer = asyncio.get_running_loop().call_later(self._back_off_s(), self._begin)

    async def copy(self, *, socket_fd: int, stderr_fd: int) -> int | None:
        """The pid of a new worker; None where there is none. One that is just doing its imports is waited for."""
        self.prepare()
        await self._settled.wait()
        running = self._running
        if running is None or not self.warm:
            return None
        try:
            async with asyncio.timeout(self._rules.copy_within_s):
                return await running.copy(socket_fd=socket_fd, stderr_fd=stderr_fd)
        except (TemplateProcessError, TimeoutError) as error:
            reason = json.dumps(str(error) or "it does not answer")
            _LOG.warning("template_process_failed pid=%s reason=%s", running.pid, reason)
            running.kill()
            return None

    async def close(self) -> None:
        """No template process any more; nothing of it is left on return."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._settled.set()
        if self._running is not None:
            self._running.kill()
        if self._keeper is not None:
            await asyncio.wait({self._keeper})
        adopt_orphans(wanted=False)

    def _begin(self) -> None:
        self._timer = None
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        """Start one and stay with it to its end. Never cancelled: only this task sees that end."""
        try:
            if host.available_bytes() < self._rules.least_available_bytes:
                return
            self._running = template_process.start(self._backend)
            await self._warm(self._running)
            status = await self._running.wait()
            self._n_deaths += 1
            if not self._closed:
                _LOG.warning("template_process_ended status=%d deaths=%d", status, self._n_deaths)
        except OSError as error:  # the next load itself will tell
            self._n_deaths += 1
            _LOG.warning("template_process_refused reason=%s", json.dumps(error.strerror))
        finally:
            self._running = self._resident_bytes = self._keeper = None
            self._settled.set()
        self._again()

    async def _warm(self, running: template_process.TemplateProcess) -> None:
        if self._closed:
            running.kill()
        try:
            async with asyncio.timeout(self._rules.warm_within_s):
                self._resident_bytes = await running.warmed()
        except (TemplateProcessError, TimeoutError) as error:
            if not self._closed:
                reason = json.dumps(str(error) or f"its imports took more than {self._rules.warm_within_s:g} s")
                _LOG.warning("template_process_unfit backend=%s reason=%s", self._backend, reason)
            self._closed = self._closed or isinstance(error, UnfitError)
            running.kill()
        else:
            _LOG.debug("template_process_ready pid=%d resident_bytes=%d", running.pid, self._resident_bytes)
            self._n_deaths = 0
            self._settled.set()

    def _again(self) -> None:
        """Replace one that has ended; loads do not wait for that."""
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._back_off_s(), self._begin)

    def _back_off_s(self) -> float:
        if self._n_deaths == 0:
            return 0.0
        return float(min(self._rules.back_off_s * 2 ** min(self._n_deaths - 1, 16), self._rules.longest_back_off_s))
