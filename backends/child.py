"""A worker process as an operating system sees it: its start, its socket, its last words, its end.

Owns no model and no jobs: that is `backends.worker`. A child that has not been told its model yet is a spare.
For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import sysconfig
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from backends.messages import Command, Report
from backends.wire import Decoder, Encoder, WireError, report_decoder

if TYPE_CHECKING:
    from collections.abc import Mapping

_STDERR_LINES: Final = 20
_KEPT_VARIABLES: Final = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE"
    r"|(CUDA|NVIDIA|OMP|OPENBLAS|MKL|GGML|PYTORCH)_\w+|COVERAGE_\w+|ONECARD_TEST_\w+"
)
"""What a worker may see of the environment: never a key or a token, because it parses files from strangers."""


class Owner(Protocol):
    """Who a child talks to; may change while it runs."""

    def received(self, report: Report) -> None:
        """A report has come."""

    def babbled(self) -> None:
        """Something has come that is no report."""

    def disconnected(self) -> None:
        """The socket is closed: the process is dying, or has to."""


class Child:
    """One process and the server's end of its socket."""

    def __init__(self, process: asyncio.subprocess.Process, owner: Owner, warm: str | None) -> None:
        self.owner = owner
        self.warm = warm
        """The backend whose imports it was told to do ahead."""
        self.stderr: deque[str] = deque(maxlen=_STDERR_LINES)
        """Its last lines."""
        self._process = process
        self._encoder = Encoder()
        self._port = _Port(self)
        self._collector = asyncio.create_task(self._collect_stderr())

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def reaped(self) -> bool:
        """The process has ended."""
        return self._process.returncode is not None

    def send(self, command: Command) -> None:
        """Send a command; after the end it is dropped. Raises WireError for what cannot be encoded."""
        self._port.write(self._encoder.frame(command))

    def kill(self) -> None:
        """Send SIGKILL."""
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def wait(self, linger_s: float) -> int:
        """The exit status, once its last frames and words have been heard, or `linger_s` after the end."""
        status = await self._process.wait()
        await asyncio.wait([self._port.closed, self._collector], timeout=linger_s)
        self._port.abort()
        self._collector.cancel()
        return status

    async def attach(self, ours: socket.socket) -> None:
        """Listen on the socket."""
        ours.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self._port, sock=ours)

    async def _collect_stderr(self) -> None:
        assert self._process.stderr is not None
        rest = b""
        while data := await self._process.stderr.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            self.stderr.extend(line.decode(errors="replace") for line in lines)
            rest = rest[-4096:]
        self.stderr.append(rest.decode(errors="replace"))


class _Port(asyncio.Protocol):
    """Bytes to reports."""

    def __init__(self, child: Child) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._child = child
        self._decoder: Decoder[Report] = report_decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Decode and hand over; nonsense condemns the child and nobody else."""
        try:
            for report in self._decoder.feed(data):
                self._child.owner.received(report)
        except WireError:
            self._child.owner.babbled()
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The child closed its end or died."""
        if not self.closed.done():
            self.closed.set_result(None)
        self._child.owner.disconnected()

    def write(self, frame: bytes) -> None:
        """Send a frame; after the end it is dropped, because the exit answers for everything."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()


async def start_child(owner: Owner, *, warm: str | None = None) -> Child:
    """Start a worker process; with `warm` it does that backend's imports before it knows its model. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        process = await _spawn(theirs.fileno(), warm)
        child = Child(process, owner, warm)
        await child.attach(ours)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return child


async def _spawn(fd: int, warm: str | None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",  # the folder the server was started in is not a place to import from
        "-m",
        "backends.worker_main",
        "--fd",
        str(fd),
        "--parent",
        str(os.getpid()),
        *(() if warm is None else ("--warm", warm)),
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
