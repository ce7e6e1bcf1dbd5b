"""A worker process as the server sees it: its start, its socket, its stderr, its end.

Owns no model and no jobs: that is `backends.border.worker`. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Protocol, TypeVar

from backends.border import process
from backends.border.process import Process
from backends.border.wire import Decoder, FrameEncoder, WireError, report_decoder, train_report_decoder
from backends.messages import Command, Report
from backends.messages.training import TrainCommand, TrainReport

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

_KEPT_VARIABLES: Final = re.compile(
    r"PATH|HOME|LANG|LANGUAGE|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|XDG_CACHE_HOME|HF_HOME|HF_HUB_CACHE|HF_HUB_OFFLINE"
    r"|(CUDA|NVIDIA|OMP|GOMP|OPENBLAS|MKL|GGML|PYTORCH)_\w+|COVERAGE_\w+|ONECARD_TEST_\w+|ONECARD_BACKENDS"
)
"""What a worker may see of the environment: never a key or a token, because it parses files from strangers."""
_READ_BYTES: Final = 1 << 18
_SPINS: Final = 20_000
"""How often a thread looks whether the others have come before it sleeps: some hundred microseconds.

So it stays awake over the Python between two steps: with 3000, one thread is woken seven times per step, 0.3 ms.
libgomp's own 300 000 are milliseconds at each of the hundreds of barriers of a step. Where two of the threads find
themselves on one core, because another process wants the second, each barrier then costs a whole slice of the kernel's
scheduler: steps of 15 ms took up to 1.2 s. `backends.gguf.threads` takes fewer threads then.
"""


R = TypeVar("R")
Said = TypeVar("Said", contravariant=True)


class Owner(Protocol[Said]):
    """Who a child talks to."""

    def received(self, report: Said, /) -> None:
        """A report has come."""

    def babbled(self) -> None:
        """Something has come that is no report."""

    def disconnected(self) -> None:
        """The socket is closed: the process is dying, or has to."""


class Copier(Protocol):
    """Makes workers of a process whose imports are done."""

    async def copy(self, *, socket_fd: int, stderr_fd: int) -> int | None:
        """The pid of a child of this process that is a worker on that socket; None when there is nothing to copy."""


class Child(Generic[R]):
    """One process and the server's end of its socket."""

    def __init__(self, running: Process, ours: socket.socket, owner: Owner[R], decoder: Decoder[R]) -> None:
        self._process = running
        self._encoder = FrameEncoder()
        self._port = _Port(ours, owner, decoder)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def stderr(self) -> Sequence[str]:
        """Its last lines."""
        return self._process.stderr

    def send(self, command: Command | TrainCommand) -> None:
        """Send a command; after the end it is dropped. Raises WireError for what cannot be encoded."""
        self._port.write(self._encoder.frame(command))

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    def signal(self, number: int) -> None:
        """Send a signal; nothing after the end."""
        self._process.signal(number)

    async def wait(self, linger_s: float) -> int:
        """The exit status, once its last frames and words have been heard, or `linger_s` after the end."""
        status = await self._process.wait()
        await asyncio.wait([self._port.closed, self._process.heard_out], timeout=linger_s)
        self._port.close()
        self._process.hang_up()
        return status


class _Port(Generic[R]):
    """The server's end of the socket: bytes to reports, and frames to bytes.

    Not asyncio's transport: that closes where it cannot write, and what the child has said before it ended is lost.
    """

    def __init__(self, ours: socket.socket, owner: Owner[R], decoder: Decoder[R]) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._owner = owner
        self._decoder = decoder
        self._unsent = bytearray()
        self._hears = True
        self._socket = ours
        ours.setblocking(False)
        self._loop.add_reader(ours, self._read)

    def write(self, frame: bytes) -> None:
        """Send a frame; after the end it is dropped, because the exit answers for everything."""
        if self._hears and not self.closed.done():
            self._unsent += frame
            self._flush()

    def close(self) -> None:
        """Neither read nor write any more."""
        if self.closed.done():
            return
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self.closed.set_result(None)
        self._owner.disconnected()

    def _read(self) -> None:
        """Decode and hand over; nonsense condemns this child alone."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # it ended without reading everything
            data = b""
        if not data:
            self.close()
            return
        try:
            for report in self._decoder.feed(data):
                self._owner.received(report)
        except WireError:
            self._owner.babbled()
            self.close()
        except BaseException:  # the reports behind this one are lost: the exit answers for everything
            self.close()
            raise

    def _flush(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # it is gone, and may have left words behind
            self._hears = False
            self._unsent.clear()
        if self._unsent:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)


async def start_child(owner: Owner[Report], *, copier: Copier | None = None) -> Child[Report]:
    """Start a worker process, a copy of one whose imports are done where there is one. Raises OSError."""
    if copier is not None:
        child = await _on_a_socket(owner, report_decoder(), partial(_copied, copier))
        if child is not None:
            return child
    child = await _on_a_socket(owner, report_decoder(), partial(_started, "backends.border.worker_main"))
    assert child is not None
    return child


async def start_training(owner: Owner[TrainReport], module: str) -> Child[TrainReport]:
    """Start the process of a fine-tuning job. Raises OSError."""
    child = await _on_a_socket(owner, train_report_decoder(), partial(_started, module))
    assert child is not None
    return child


async def _on_a_socket(
    owner: Owner[R], decoder: Decoder[R], begin: Callable[[int], Awaitable[Process | None]]
) -> Child[R] | None:
    """Each attempt has a socket of its own: a copy that comes too late finds the other end closed, and ends."""
    ours, theirs = socket.socketpair()
    running: Process | None = None
    try:
        running = await begin(theirs.fileno())
        if running is None:
            ours.close()
            return None
        return Child(running, ours, owner, decoder)
    except BaseException:
        ours.close()
        if running is not None:
            await running.end()
        raise
    finally:
        theirs.close()


async def _started(module: str, socket_fd: int) -> Process:
    return run_module(module, socket_fd)


async def _copied(copier: Copier, socket_fd: int) -> Process | None:
    words, stderr_fd = os.pipe()
    try:
        pid = await copier.copy(socket_fd=socket_fd, stderr_fd=stderr_fd)
    except BaseException:
        os.close(words)
        raise
    finally:
        os.close(stderr_fd)
    if pid is None:
        os.close(words)
        return None
    return Process(pid, words)


def run_module(module: str, fd: int, *arguments: str) -> Process:
    """Start a module of ours on its end of a socket. Raises OSError."""
    # -P: the folder the server was started in is not a place to import from
    command = [sys.executable, "-P", "-m", module, "--fd", str(fd), "--parent", str(os.getpid()), *arguments]
    return process.start(command, fds=(fd,), env=environment(os.environ))


def environment(inherited: Mapping[str, str], *, spins: int | None = _SPINS) -> dict[str, str]:
    """What a worker gets to see: an allow-list, and where the packages are when they are not installed.

    `spins` is how long threads look for each other, unless the operator has said so; None: as the library has it.
    """
    kept = {name: value for name, value in inherited.items() if _KEPT_VARIABLES.fullmatch(name)}
    search = [entry for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    checkout = str(Path(__file__).resolve().parents[2])
    if checkout not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *search}:
        search.append(checkout)
    if spins is not None and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & kept.keys():
        kept["GOMP_SPINCOUNT"] = str(spins)
    visible = kept.get("CUDA_VISIBLE_DEVICES", "0")
    kept["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0].strip()  # llama.cpp would spread a model over all of them
    kept["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts cards; CUDA's own, which it cannot tell, by speed
    kept["GGML_NO_BACKTRACE"] = "1"  # it starts a debugger, whose lines hide the sentence that says why
    kept["OPENBLAS_NUM_THREADS"] = "1"  # nothing here multiplies matrices with numpy, and each thread takes memory
    if search:
        kept["PYTHONPATH"] = os.pathsep.join(search)
    return kept
