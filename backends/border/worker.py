"""The server's handle of one worker process: starts it, talks to it, watches it, and answers for its jobs when it dies.

Owns the process and its live jobs. It knows nothing of queues, memory or HTTP. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

import msgspec

from backends.border.child import Child, Copier, start_child
from backends.border.link import EXIT_OUT_OF_MEMORY
from backends.border.wire import WireError
from backends.machine.crash_reason import LOAD_HINT, REASON_CHARS, clean, essence, no_memory, signal_in_words
from backends.machine.kernel import busyness
from backends.messages import (
    ENDS,
    Cancel,
    Command,
    CutShort,
    ErrorCode,
    Failed,
    Job,
    Keep,
    Keeps,
    LoadFailed,
    LoadModel,
    Ping,
    Pong,
    Preempt,
    Progress,
    Ready,
    Report,
    Shutdown,
    Step,
    Submit,
)

_IDLE_TICKS: Final = 2
"""Of 10 ms, between two looks: answering a ping takes less."""


@dataclass(frozen=True)
class Timeouts:
    """How long the handle waits for what, in seconds."""

    load_s: float = 600.0
    ping_every_s: float = 1.0
    start_s: float = 60.0
    """From the start of a process to its first sign of life: imports take long beside others, or from a cold disk."""
    stall_s: float = 30.0
    """While a model is loaded: the longest that a worker neither computes nor reads. Its disk does not answer then."""
    pong_s: float = 8.0
    """Silence after which a worker counts as hung, once it has given one."""
    step_s: float = 300.0
    """The longest an engine step (or the preparation of one job) may run."""
    stop_s: float = 5.0
    """From the request to stop to SIGKILL."""
    linger_s: float = 1.0
    """For the process after its socket closed, and for its last lines on stderr after it exited."""


@dataclass(frozen=True)
class Exit:
    """How a worker ended. `code` is None when it was asked to, else what its jobs and its model failed with."""

    code: ErrorCode | None
    message: str
    failed: tuple[Failed, ...] = ()
    """The terminal events of the jobs it left behind."""


class Listener(Protocol):
    """Who wants to know; every call is made on the event loop's thread."""

    def on_progress(self, worker: Worker, fraction: float) -> None:
        """A share of the load is done."""

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """The model is loaded: jobs may be submitted."""

    def on_step(self, worker: Worker, step: Step) -> None:
        """Events of live jobs; exactly one terminal event each, here or in `Exit.failed`."""

    def on_keeps(self, worker: Worker, max_bytes: int) -> None:
        """It holds no more than that of cached prefixes."""

    def on_exit(self, worker: Worker, how: Exit) -> None:
        """The process is gone and reaped. The last call."""


class Worker:
    """One child process with one model."""

    def __init__(self, spec: LoadModel, listener: Listener, timeouts: Timeouts = Timeouts()) -> None:
        self.spec = spec
        self.ready: Ready | None = None
        self._listener = listener
        self._timeouts = timeouts
        self._live: set[str] = set()
        self._child: Child[Report] | None = None
        self._verdict: Exit | None = None
        self._load_failed: LoadFailed | None = None
        self._unanswered_pings = 0
        self._heard = False
        self._exited = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        return self._child.pid if self._child else None

    @property
    def alive(self) -> bool:
        """True from the start until the process is reaped."""
        return self._child is not None and not self._exited.is_set()

    async def start(self, copier: Copier | None = None) -> None:
        """Start the process, a copy where there is something to copy, and send it the model to load.

        `on_ready` or `on_exit` follows. Raises OSError, and then nothing follows.
        """
        child = self._child = await start_child(self, copier=copier)
        self._send(self.spec)
        self._tasks = [asyncio.create_task(self._watch()), asyncio.create_task(self._reap(child))]

    def submit(self, job: Job) -> None:
        """Run a job; its events come to `on_step`. The caller has checked that the worker is ready and has room."""
        self._live.add(job.id)
        try:
            self._send(Submit(job=job))
        except WireError as error:
            message = f"the request cannot be sent to the model: {error}"
            step: Step = Step(events=[Failed(id=job.id, code="invalid_value", message=message)])
            asyncio.get_running_loop().call_soon(self._deliver, step)

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job; the terminal event comes as always."""
        if job_id in self._live:
            self._send(Cancel(id=job_id))

    def cut_short(self, job_id: str, reason: ErrorCode) -> None:
        """Ask for the end of a job with what it has generated; the terminal event comes as always."""
        if job_id in self._live:
            self._send(CutShort(id=job_id, reason=reason))

    def preempt(self, job_id: str) -> None:
        """Ask for the end of a job that another worker can resume; one that cannot be goes on to its end."""
        if job_id in self._live:
            self._send(Preempt(id=job_id))

    def keep(self, max_bytes: int) -> None:
        """Let it hold at most so many bytes of cached prefixes; `on_keeps` follows when it does."""
        self._send(Keep(max_bytes=max_bytes))

    async def stop(self, *, within_s: float | None = None) -> None:
        """Ask the worker to exit, kill it when it does not in time; the process is reaped on return."""
        if self._child is None:
            return
        if self._verdict is None:
            self._verdict = Exit(None, "stopped")
            self._send(Shutdown())
        if self.ready is None:  # a load cannot be interrupted in any other way
            self.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._exited.wait(), self._timeouts.stop_s if within_s is None else within_s)
        self.kill()
        await self._exited.wait()

    def kill(self) -> None:
        """Send SIGKILL; `on_exit` follows."""
        if self._child is not None:
            self._child.kill()

    def received(self, report: Report) -> None:
        """Take a report from the socket."""
        self._heard = True
        match report:
            case Step():
                self._deliver(report)
            case Pong(step_age_s=age_s):
                self._unanswered_pings = 0
                if age_s > self._timeouts.step_s:
                    self.condemn("worker_hung", f"was stuck in one step for more than {self._timeouts.step_s:.0f} s")
            case Progress(fraction=fraction):
                self._listener.on_progress(self, fraction)
            case Ready():
                if self.ready is None and self._verdict is None:
                    self.ready = report
                    self._listener.on_ready(self, report)
            case LoadFailed():
                self._load_failed = report
            case Keeps(max_bytes=max_bytes):
                self._listener.on_keeps(self, max_bytes)
            case _:
                assert_never(report)

    def babbled(self) -> None:
        """Bytes have come that are no report."""
        self.condemn("worker_crashed", "sent a broken message")

    def condemn(self, code: ErrorCode, what: str) -> None:
        """Kill the worker for a reason that its jobs will be told."""
        if self._verdict is None:
            self._verdict = Exit(code, f"the worker of model '{self.spec.name}' {what}")
        self.kill()

    def disconnected(self) -> None:
        """The socket is closed: the process is dying, or has to."""
        asyncio.get_running_loop().call_later(self._timeouts.linger_s, self.kill)

    def _send(self, command: Command) -> None:
        if self._child is not None:
            self._child.send(command)

    def _deliver(self, step: Step) -> None:
        live = self._live
        events = [event for event in step.events if event.id in live]
        for event in events:
            if isinstance(event, ENDS):
                live.discard(event.id)
        if len(events) != len(step.events):  # late words about a job that is already answered for
            step = msgspec.structs.replace(step, events=events)
        self._listener.on_step(self, step)

    async def _watch(self) -> None:
        """Count unanswered pings, not seconds: a server that slept itself must not blame its workers."""
        timeouts = self._timeouts
        loading_s = stalled_s = 0.0
        before: tuple[int, int] | None = None
        while not self._exited.is_set():
            self._unanswered_pings += 1
            self._send(Ping())
            await asyncio.sleep(timeouts.ping_every_s)
            silence_s = timeouts.pong_s if self._heard else timeouts.start_s
            if self._unanswered_pings >= max(1, round(silence_s / timeouts.ping_every_s)):
                self.condemn("worker_hung", f"gave no sign of life for {silence_s:g} s")
            if self.ready is None:
                loading_s += timeouts.ping_every_s
                if loading_s > timeouts.load_s:
                    self.condemn("worker_hung", f"did not finish loading in {timeouts.load_s:g} s")
                now = self._busyness()
                waits = now is not None and before is not None and _stands_still(before, now)
                before, stalled_s = now, stalled_s + timeouts.ping_every_s if waits else 0.0
                if stalled_s > timeouts.stall_s:
                    told = f"waited {timeouts.stall_s:g} s for the model's files: their disk does not answer"
                    self.condemn("worker_hung", told)

    def _busyness(self) -> tuple[int, int] | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self._child is not None:
                return busyness(self._child.pid)
        return None

    async def _reap(self, child: Child[Report]) -> None:
        status = await child.wait(self._timeouts.linger_s)
        how = self._how(status)
        code: ErrorCode = how.code or "draining"
        message = how.message if how.code else "the server is shutting this model down"
        failed = tuple(Failed(id=job_id, code=code, message=message) for job_id in sorted(self._live))
        self._live.clear()
        self._exited.set()
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self._listener.on_exit(self, replace(how, failed=failed))

    def _how(self, status: int) -> Exit:
        if self._load_failed is not None:
            return Exit(self._load_failed.code, clean(self._load_failed.message, most_chars=REASON_CHARS))
        if self._verdict is not None:
            return self._verdict
        ended = signal_in_words(-status) if status < 0 else f"exit code {status}"
        crash_reason = essence(self._child.stderr) if self._child is not None else ""
        what = f"the worker of model '{self.spec.name}' ended with {ended}" + (
            f": {crash_reason}" if crash_reason else ""
        )
        when = ", while it loaded the model" if self.ready is None else ""
        if status == EXIT_OUT_OF_MEMORY or no_memory(crash_reason):
            return Exit("out_of_memory", what.replace(" ended with ", " ran out of memory and ended with ") + when)
        hint = f". {LOAD_HINT}" if self.ready is None else ""
        return Exit("load_failed" if self.ready is None else "worker_crashed", what + when + hint)


def _stands_still(before: tuple[int, int], now: tuple[int, int]) -> bool:
    """Neither computing nor reading, by ticks of the processor and bytes read."""
    return now[0] - before[0] <= _IDLE_TICKS and now[1] == before[1]
