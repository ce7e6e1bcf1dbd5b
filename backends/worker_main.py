"""The worker process: one model, one engine, one socket to the server.

Three threads: the reader takes commands and answers pings, the preparer renders and tokenizes, the main thread steps
the engine. It never outlives the server: end-of-file on the socket or the parent's death ends it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import os
import queue
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from backends import registry
from backends.engine import Engine, JobError, LoadError
from backends.messages import (
    Cancel,
    Command,
    Event,
    Failed,
    Job,
    LoadFailed,
    LoadModel,
    Ping,
    Pong,
    Progress,
    Report,
    Shutdown,
    Step,
    Submit,
)
from backends.wire import Decoder, Encoder, WireError, command_decoder, receive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backends.engine import Prepared

EXIT_ORPHANED: Final = 0
EXIT_LOAD_FAILED: Final = 3
EXIT_ENGINE_ERROR: Final = 70
_PR_SET_PDEATHSIG: Final = 1
_STEPS_PER_COLLECT: Final = 4096
"""The garbage collector runs when the loop is idle, and after this many steps without a pause."""


class Link:
    """The worker's end of the socket: whole frames, one sender at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()
        self._encoder = Encoder()
        self._decoder: Decoder[Command] = command_decoder()

    def send(self, report: Report) -> None:
        """Send one report; a server that is gone ends this process."""
        with self._lock:
            frame = self._encoder.frame(report)
            try:
                self._sock.sendall(frame)
            except OSError:
                os._exit(EXIT_ORPHANED)

    def receive(self) -> list[Command]:
        """Block for the next commands; end-of-file or nonsense ends this process."""
        try:
            commands = receive(self._sock, self._decoder)
        except WireError as error:
            note(error)
            os._exit(EXIT_ENGINE_ERROR)
        if commands is None:
            os._exit(EXIT_ORPHANED)
        return commands


class Clerk:
    """Takes commands in and makes jobs ready, so that the engine's thread only ever computes.

    A job is known in `_unprepared` until it is prepared; whoever removes it from there answers for it, so a `Cancel`
    and a finished preparation never both do.
    """

    def __init__(self, link: Link) -> None:
        self.inbox: queue.SimpleQueue[Prepared | Cancel | Shutdown] = queue.SimpleQueue()
        self.step_started: float | None = None
        self._link = link
        self._engine: Engine | None = None
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._unprepared: set[str] = set()
        self._lock = threading.Lock()
        self._prepare_started: float | None = None

    def start(self, already_read: Sequence[Command] = ()) -> None:
        """Read from now on, also while the model loads."""
        for command in already_read:
            self._take(command)
        threading.Thread(target=_or_exit, args=(self._read,), name="reader", daemon=True).start()

    def serve(self, engine: Engine) -> None:
        """Accept jobs from now on."""
        self._engine = engine
        threading.Thread(target=_or_exit, args=(self._prepare_all,), name="preparer", daemon=True).start()

    def _read(self) -> None:
        while True:
            for command in self._link.receive():
                self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case Ping():
                self._link.send(Pong(step_age_s=self._age_s()))
            case Submit(job=job):
                with self._lock:
                    self._unprepared.add(job.id)
                self._jobs.put(job)
            case Cancel(id=job_id):
                with self._lock:
                    waiting = job_id in self._unprepared
                    self._unprepared.discard(job_id)
                    if not waiting:
                        self.inbox.put(command)
                if waiting:
                    self._answer([Failed(id=job_id, code="cancelled", message="the request was cancelled")])
            case Shutdown():
                self.inbox.put(command)
            case LoadModel():
                pass

    def _prepare_all(self) -> None:
        while True:
            job = self._jobs.get()
            if job.id in self._unprepared:
                self._prepare_started = time.monotonic()
                result = self._prepare(job)
                self._prepare_started = None
                self._deliver(job.id, result)

    def _prepare(self, job: Job) -> Prepared | list[Event]:
        assert self._engine is not None
        try:
            return self._engine.prepare(job)
        except JobError as error:
            return [Failed(id=job.id, code=error.code, message=error.message, param=error.param)]
        except Exception as error:  # a fault of ours must not take the other jobs along
            note(error)
            return [Failed(id=job.id, code="internal_error", message="the request could not be prepared for the model")]

    def _deliver(self, job_id: str, result: Prepared | list[Event]) -> None:
        with self._lock:
            wanted = job_id in self._unprepared
            self._unprepared.discard(job_id)
            if wanted and not isinstance(result, list):
                self.inbox.put(result)  # under the lock, so that a later Cancel stands behind it
        if wanted and isinstance(result, list):
            self._answer(result)

    def _answer(self, events: list[Event]) -> None:
        self._link.send(Step(events=events))

    def _age_s(self) -> float:
        started = [t for t in (self.step_started, self._prepare_started) if t is not None]
        return time.monotonic() - min(started) if started else 0.0


def run(engine: Engine, link: Link, clerk: Clerk) -> None:
    """Step the engine while it has work and sleep while it has none; returns at `Shutdown`."""
    steps_since_collect = 0
    while True:
        arrived = _drain(clerk.inbox, wait=engine.idle)
        clerk.step_started = time.monotonic()
        events: list[Event] = []
        for item in arrived:
            if isinstance(item, Shutdown):
                return
            events += engine.cancel(item.id) if isinstance(item, Cancel) else _add(engine, item)
        report = Step() if engine.idle else engine.step()
        if events:
            report = msgspec.structs.replace(report, events=events + report.events)
        clerk.step_started = None
        if report.events or report.n_decode or report.n_prefill:
            link.send(report)
        steps_since_collect += 1
        if engine.idle or steps_since_collect >= _STEPS_PER_COLLECT:
            gc.collect(1)
            steps_since_collect = 0


def _drain(inbox: queue.SimpleQueue[Prepared | Cancel | Shutdown], *, wait: bool) -> list[Prepared | Cancel | Shutdown]:
    arrived = [inbox.get()] if wait else []
    with contextlib.suppress(queue.Empty):
        while True:
            arrived.append(inbox.get_nowait())
    return arrived


def _add(engine: Engine, prepared: Prepared) -> list[Event]:
    try:
        return engine.add(prepared)
    except JobError as error:
        return [Failed(id=prepared.id, code=error.code, message=error.message, param=error.param)]


def note(error: BaseException) -> None:
    """Write type and place of an error to stderr; its text may hold a prompt, so that stays out."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else "unknown place"
    sys.stderr.write(f"worker error: {type(error).__name__} at {where}\n")
    sys.stderr.flush()


def die_with(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the server dies, and leave at once if it already has."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(EXIT_ORPHANED)


def limit_damage() -> None:
    """No core files (they hold prompts), and the kernel's out-of-memory killer takes a worker before the server."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _load(spec: LoadModel, link: Link) -> Engine:
    try:
        return registry.load(spec, lambda fraction: link.send(Progress(fraction=fraction)))
    except LoadError as error:
        failure = LoadFailed(code="out_of_memory" if error.out_of_memory else "load_failed", message=error.message)
    except MemoryError:
        failure = LoadFailed(code="out_of_memory", message="the machine ran out of memory while the model was loaded")
    except Exception as error:  # whatever a bad file makes a library raise is a failed load, not a crash
        note(error)
        failure = LoadFailed(code="load_failed", message=f"the engine could not load it ({type(error).__name__})")
    link.send(failure)
    return _exit(EXIT_LOAD_FAILED)


def _or_exit(work: Callable[[], None]) -> None:
    """Run a thread's work; a worker that lost one of its threads is no use to anybody."""
    try:
        work()
    except BaseException as error:
        note(error)
        _exit(EXIT_ENGINE_ERROR)


def _exit(code: int) -> NoReturn:
    sys.stderr.flush()
    os._exit(code)  # daemon threads sit in blocking calls; a normal interpreter exit could wait for them


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a worker on the socket `--fd` until the server shuts it down or is gone."""
    parser = argparse.ArgumentParser(prog="onecard-worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args(argv)
    die_with(args.parent)
    limit_damage()
    os.set_inheritable(args.fd, False)
    link = Link(socket.socket(fileno=args.fd))
    first, *rest = link.receive()
    if not isinstance(first, LoadModel):
        _exit(EXIT_ENGINE_ERROR)
    clerk = Clerk(link)
    clerk.start(rest)
    engine = _load(first, link)
    gc.collect()
    gc.freeze()
    gc.disable()  # a full collection takes longer than a decode step; `run` collects between steps
    clerk.serve(engine)
    link.send(engine.ready())
    try:
        run(engine, link, clerk)
        engine.close()
    except BaseException as error:  # the engine's state is unknown now: the server starts a new worker
        note(error)
        _exit(EXIT_ENGINE_ERROR)
    _exit(0)


if __name__ == "__main__":
    main()
