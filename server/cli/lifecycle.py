"""The life of the listener: up, draining at the first signal, gone at the second.

uvicorn speaks HTTP; signals are ours, because its own handling would cut streams that still run.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import uvicorn

from backends.machine.kernel import share_few_arenas
from server.cli.early import ENDING, TELLING, Terminal, heeds_hangup
from server.cli.watching import watch
from server.door.http1 import StrictHttp
from server.reload import Reloader, ReloadError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Generator

    from fastapi import FastAPI

    from server.cli.watching import Watched
    from server.pool.pool import Pool

log = logging.getLogger("onecard.serve")
_STOP_S = 15
"""How long the workers may take to end once the grace is over."""
_FLUSH_S = 3
"""How long answers that are complete may take to reach their readers."""
_BACKLOG = 2048
_ARENAS = 2
"""For the event loop, and for the threads that read large bodies."""
_ACCEPTS_PER_STEP = 32
"""asyncio goes on accepting so often although no file is left, and reports every failure."""
_MOST_FILES = 65_536
_SAY_EVERY_S = 10


class Listener(uvicorn.Server):
    """uvicorn without its signals, and with a word when it is up."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._announce = announce

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals alone."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then announce."""
        await super().startup(sockets=sockets)
        for sock in sockets or []:
            sock.listen(_BACKLOG)
        if self.started and not self.should_exit:
            await self._announce()


class Drain:
    """From the first signal to the end: no new work, running requests finish within the grace, then all closes."""

    def __init__(self, listener: Listener, pool: Any, *, drain_s: float) -> None:
        self._listener = listener
        self._pool = pool
        self._drain_s = drain_s
        self._task: asyncio.Task[None] | None = None

    def on_signal(self, reason: str, exit_code: int) -> None:
        """Begin to drain; a second signal ends the process now, and workers end with it."""
        if self._task is not None:
            log.warning("exit_now reason=%s", reason)
            logging.shutdown()
            os._exit(exit_code)
        log.info("draining reason=%s grace_s=%g", reason, self._drain_s)
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await asyncio.wait_for(self._pool.close(self._drain_s), self._drain_s + _STOP_S)
            await self._flushed()
        except TimeoutError:
            log.error("drain_stuck hint='something did not end; it ends with this process'")
            logging.shutdown()
            os._exit(1)
        except Exception:
            log.exception("drain_failed")
        finally:
            self._listener.should_exit = True

    async def _flushed(self) -> None:
        """Wait until the last answers have left."""
        if tasks := set(self._listener.server_state.tasks):
            await asyncio.wait(tasks, timeout=_FLUSH_S)


class Hangups:
    """SIGHUP: a terminal that has closed ends the server, anyone else asks for the configuration to be read again."""

    def __init__(self, drain: Drain, reloader: Reloader) -> None:
        self._drain = drain
        self._reloader = reloader
        self._terminal = Terminal()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_signal(self) -> None:
        """Do what it means now."""
        if self._terminal.closed:
            self._drain.on_signal("SIGHUP", 128 + signal.SIGHUP)
            return
        task = asyncio.get_running_loop().create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reload(self) -> None:
        with contextlib.suppress(ReloadError):  # told where it happened
            await self._reloader.reload("SIGHUP")


class Mishaps:
    """asyncio's own failures: no file for another connection is one line now and then, the rest as ever."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Take one failure. Accepting goes on after a second."""
        if context.get("message") != "socket.accept() out of system resource":
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SAY_EVERY_S
            reason = getattr(context.get("exception"), "strerror", None) or "out of resources"
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            log.warning("connections_wait reason=%r files=%d hint='raise ulimit -n'", reason, soft)


def raise_file_limit() -> int | None:
    """As many open files as this user may have, None where there is no limit: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return None if soft == resource.RLIM_INFINITY else soft


async def serve_until_told(
    app: FastAPI,
    sockets: list[socket.socket],
    *,
    drain_s: float,
    announce: Callable[[], Awaitable[None]],
    until_stdin: bool,
    watched: Watched | None = None,
) -> None:
    """Serve on listening sockets until SIGTERM or SIGINT, or the end of stdin where `until_stdin`; then drain.

    `watched` has the files whose change is a reason to read the configuration again.
    """
    share_few_arenas(_ARENAS)
    config = uvicorn.Config(
        app,
        http=StrictHttp,
        backlog=_ACCEPTS_PER_STEP,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    listener = Listener(config, announce)
    drain = Drain(listener, app.state.pool, drain_s=drain_s)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(Mishaps())
    for number in ENDING:
        loop.add_signal_handler(number, drain.on_signal, number.name, 128 + number)
    hangups = Hangups(drain, app.state.services.reloader)
    if heeds_hangup():
        loop.add_signal_handler(signal.SIGHUP, hangups.on_signal)
    for number in TELLING:
        loop.add_signal_handler(number, _tell, app.state.pool)
    if until_stdin:
        loop.add_reader(sys.stdin.fileno(), _at_end_of_stdin, loop, drain)
    # The lifespan is run here and not by uvicorn, which would turn a failing start into a traceback.
    async with app.router.lifespan_context(app):
        gc.collect()
        gc.freeze()  # what is there now stays: no later collection walks over it
        watching = asyncio.create_task(watch(watched, app.state.services.reloader)) if watched is not None else None
        await listener.serve(sockets=sockets)
        if watching is not None:
            watching.cancel()


def _tell(pool: Pool) -> None:
    status = pool.status()
    for model in status.models:
        log.info("status model=%s state=%s busy=%d waiting=%d", model.name, model.state, model.busy, model.waiting)


def _at_end_of_stdin(loop: asyncio.AbstractEventLoop, drain: Drain) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        drain.on_signal("stdin", 1)
