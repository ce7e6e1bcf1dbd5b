"""The server's handle of a template process: a backend's imports done, no model; it makes copies of itself.

A copy is a worker like any other and a child of the server: it outlives this process, and its exit
status is the kernel's word. What the process itself does is in `backends.border.template_process_main`. For the event
loop's thread only.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final

import msgspec

from backends.border.child import run_module
from backends.machine.kernel import adopt_orphans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.border.process import Process

MOST_BYTES: Final = 4096
"""Of one packet."""


class Warm(msgspec.Struct, tag="warm", frozen=True):
    """The imports are done: copies can be made."""

    resident_bytes: int
    """Anonymous memory it holds."""


class Copied(msgspec.Struct, tag="copied", frozen=True):
    """A copy has been made."""

    pid: int


class Unfit(msgspec.Struct, tag="unfit", frozen=True):
    """No copy of this process can be a worker."""

    reason: str


Word = Warm | Copied | Unfit


class TemplateProcessError(Exception):
    """It is of no use, now or ever; the message is why."""


class UnfitError(TemplateProcessError):
    """Its backend cannot be copied at all."""


class TemplateProcess:
    """One process and the server's end of its socket."""

    def __init__(self, running: Process, ours: socket.socket) -> None:
        self._process = running
        self._socket = ours
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def stderr(self) -> Sequence[str]:
        """Its last lines."""
        return self._process.stderr

    async def warmed(self) -> int:
        """Wait for the imports, once: the anonymous memory it holds, in bytes. Raises TemplateProcessError."""
        async with self._turn:
            word = await self._hear()
        if isinstance(word, Unfit):
            raise UnfitError(word.reason)
        if not isinstance(word, Warm):
            raise TemplateProcessError("it spoke out of turn")
        return word.resident_bytes

    async def copy(self, *, socket_fd: int, stderr_fd: int) -> int:
        """The pid of a new worker on that socket; only once it is warm. Raises TemplateProcessError."""
        async with self._turn:
            adopt_orphans(wanted=True)
            try:
                socket.send_fds(self._socket, [b"copy"], [socket_fd, stderr_fd])
            except OSError as error:
                raise TemplateProcessError(f"it cannot be asked: {error.strerror}") from None
            word = await self._hear()
        if not isinstance(word, Copied):
            raise TemplateProcessError(word.reason if isinstance(word, Unfit) else "it spoke out of turn")
        return word.pid

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        status = await self._process.wait()
        self._process.hang_up()
        self._socket.close()
        return status

    async def _hear(self) -> Word:
        """The next packet. Raises TemplateProcessError when none can come any more."""
        try:
            packet = await asyncio.get_running_loop().sock_recv(self._socket, MOST_BYTES)
        except OSError as error:
            raise TemplateProcessError(f"it cannot be heard: {error.strerror}") from None
        try:
            word: Word = msgspec.msgpack.decode(packet, type=Word)
        except msgspec.MsgspecError:
            raise TemplateProcessError("it is gone" if not packet else "it sent a broken message") from None
        return word


def start(backend: str) -> TemplateProcess:
    """Start a template process of a backend. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        running = run_module("backends.border.template_process_main", theirs.fileno(), "--backend", backend)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    ours.setblocking(False)
    return TemplateProcess(running, ours)
