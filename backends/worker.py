"""The server's handle of one worker process: starts it, talks to it, watches it, and answers for its jobs when it dies.

Owns the process and its live jobs. It knows nothing of queues, memory or HTTP. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import sysconfig
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from backends.messages import (
    Cancel,
    Command,
    ErrorCode,
    Failed,
    Finished,
    Job,
    LoadFailed,
    LoadModel,
    Ping,
    Pong,
    Progress,
    Ready,
    Report,
    Shutdown,
    Step,
    Submit,
)
from backends.wire import Decoder, Encoder, WireError, report_decoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STDERR_LINES: Final = 20
_ESSENCE_CHARS: Final = 240
_KEPT_VARIABLES: Final = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE"
    r"|(CUDA|NVIDIA|OMP|OPENBLAS|MKL|GGML|PYTORCH)_\w+|COVERAGE_\w+|ONECARD_TEST_\w+"
)
"""What a worker may see of the environment: never a key or a token, because it parses files from strangers."""


@dataclass(frozen=True)
class Timeouts:
    """How long the handle waits for what, in seconds."""

    load_s: float = 600.0
    ping_every_s: float = 1.0
    pong_s: float = 8.0
    """Silence after which a worker counts as hung."""
    step_s: float = 300.0
    """The longest an engine step (or the preparation of one job) may run."""
    stop_s: float = 5.0
    """From the request to stop to SIGKILL."""
    linger_s: float = 1.0
    """For the process after its socket closed, and for its last words after it exited."""


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
        self._encoder = Encoder()
        self._port: _Port | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        self._verdict: Exit | None = None
        self._load_failed: LoadFailed | None = None
        self._unanswered_pings = 0
        self._exited = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int | None:
        """The process id, None before the start."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """True from the start until the process is reaped."""
        return self._process is not None and not self._exited.is_set()

    @property
    def live_jobs(self) -> frozenset[str]:
        """Ids of the jobs that have no terminal event yet."""
        return frozenset(self._live)

    async def start(self) -> None:
        """Start the process and send it the model to load; `on_ready` or `on_exit` follows.

        Raises OSError, and then nothing follows.
        """
        ours, theirs = socket.socketpair()
        try:
            process = await _spawn(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        _, self._port = await loop.create_connection(lambda: _Port(self), sock=ours)
        self._send(self.spec)
        stderr = asyncio.create_task(self._collect_stderr(process))
        self._tasks = [
            stderr,
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._reap(process, self._port, stderr)),
        ]

    def submit(self, job: Job) -> None:
        """Run a job; its events come to `on_step`. The caller has checked that the worker is ready and has room."""
        self._live.add(job.id)
        try:
            self._send(Submit(job=job))
        except WireError as error:
            failed = Failed(
                id=job.id, code="invalid_value", message=f"the request cannot be sent to the model: {error}"
            )
            asyncio.get_running_loop().call_soon(self._deliver, Step(events=[failed]))

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job; the terminal event comes as always."""
        if job_id in self._live:
            self._send(Cancel(id=job_id))

    async def stop(self, *, within_s: float | None = None) -> None:
        """Ask the worker to exit, kill it when it does not in time; the process is reaped on return."""
        if self._process is None:
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
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def received(self, report: Report) -> None:
        """Take a report from the socket."""
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

    def condemn(self, code: ErrorCode, what: str) -> None:
        """Kill the worker for a reason that its jobs will be told."""
        if self._verdict is None:
            self._verdict = Exit(code, f"the worker of model '{self.spec.name}' {what}")
        self.kill()

    def disconnected(self) -> None:
        """The socket is closed: the process is dying, or has to."""
        asyncio.get_running_loop().call_later(self._timeouts.linger_s, self.kill)

    def _send(self, command: Command) -> None:
        if self._port is not None:
            self._port.write(self._encoder.frame(command))

    def _deliver(self, step: Step) -> None:
        live = self._live
        events = [event for event in step.events if event.id in live]
        for event in events:
            if isinstance(event, Finished | Failed):
                live.discard(event.id)
        if len(events) != len(step.events):  # late words about a job that is already answered for
            step = msgspec.structs.replace(step, events=events)
        self._listener.on_step(self, step)

    async def _watch(self) -> None:
        """Count unanswered pings, not seconds: a server that slept itself must not blame its workers."""
        timeouts = self._timeouts
        allowed = max(1, round(timeouts.pong_s / timeouts.ping_every_s))
        loading_s = 0.0
        while not self._exited.is_set():
            self._unanswered_pings += 1
            self._send(Ping())
            await asyncio.sleep(timeouts.ping_every_s)
            if self._unanswered_pings >= allowed:
                self.condemn("worker_hung", f"gave no sign of life for {timeouts.pong_s:g} s")
            if self.ready is None:
                loading_s += timeouts.ping_every_s
                if loading_s > timeouts.load_s:
                    self.condemn("worker_hung", f"did not finish loading in {timeouts.load_s:g} s")

    async def _collect_stderr(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        rest = b""
        while data := await process.stderr.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            self._stderr.extend(line.decode(errors="replace") for line in lines)
            rest = rest[-4096:]
        self._stderr.append(rest.decode(errors="replace"))

    async def _reap(self, process: asyncio.subprocess.Process, port: _Port, stderr: asyncio.Task[None]) -> None:
        status = await process.wait()
        await asyncio.wait([port.closed, stderr], timeout=self._timeouts.linger_s)  # its last frames and words
        port.abort()
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
            return Exit(self._load_failed.code, clean(self._load_failed.message))
        if self._verdict is not None:
            return self._verdict
        ended = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        last_words = essence(self._stderr)
        what = f"the worker of model '{self.spec.name}' ended with {ended}" + (f": {last_words}" if last_words else "")
        if self.ready is None:
            return Exit("load_failed", what + ", while it loaded the model")
        return Exit("worker_crashed", what)


class _Port(asyncio.Protocol):
    """The server's end of the socket: bytes to reports."""

    def __init__(self, worker: Worker) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker = worker
        self._decoder: Decoder[Report] = report_decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decode and hand over; nonsense condemns the worker and nobody else."""
        try:
            for report in self._decoder.feed(data):
                self._worker.received(report)
        except WireError:
            self._worker.condemn("worker_crashed", "sent a broken message")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The worker closed its end or died."""
        if not self.closed.done():
            self.closed.set_result(None)
        self._worker.disconnected()

    def write(self, frame: bytes) -> None:
        """Send a frame; after the end it is dropped, because the exit answers for everything."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


async def _spawn(fd: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the folder the server was started in is not a place to import from
        "-m",
        "backends.worker_main",
        "--fd",
        str(fd),
        "--parent",
        str(os.getpid()),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(fd,),
        start_new_session=True,
        env=environment(os.environ),
    )


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What a worker gets to see: an allow-list, and where the packages are when they are not installed."""
    kept = {name: value for name, value in inherited.items() if _KEPT_VARIABLES.fullmatch(name)}
    search = [entry for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    checkout = str(Path(__file__).resolve().parent.parent)
    if checkout not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *search}:
        search.append(checkout)
    if search:
        kept["PYTHONPATH"] = os.pathsep.join(search)
    return kept


_TELLING: Final = re.compile(r"error|fail|assert|abort|out of memory|cannot|unknown|unsupported|invalid", re.IGNORECASE)
_PLACES: Final = re.compile(r"(?:/[^\s/:'\"]+)+/")
_ADDRESSES: Final = re.compile(r"\(?\b0x[0-9a-fA-F]{4,}\b\)?")


def essence(lines: Iterable[str]) -> str:
    """The last telling line of a worker's stderr, fit for a user: no folders, no addresses, no control characters."""
    telling = [line for line in lines if _TELLING.search(line)]
    if not telling:
        return ""
    return clean(telling[-1])


def clean(line: str) -> str:
    """A library's sentence without folders, addresses and control characters, cut to a readable length."""
    line = _ADDRESSES.sub("", _PLACES.sub("", line))
    printable = "".join(c if c.isprintable() else " " for c in line)
    return " ".join(printable.split())[:_ESSENCE_CHARS]
