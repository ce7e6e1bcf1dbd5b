"""A child process by its pidfd: its last lines on stderr, its end, and a way to end it that hits no other process.

`asyncio.subprocess` would not do: its `kill` reaps behind the back of its own watcher, which then has no exit status to
tell (python/cpython#87744), and it cannot watch a child that it has not started. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STDERR_LINES: Final = 20
_LONGEST_LINE: Final = 4096
_READ_BYTES: Final = 1 << 16
_GROUP_LOOKS: Final = 200
_GROUP_PAUSE_S: Final = 0.005
_UNKNOWN_STATUS: Final = 255
"""Of a child that was reaped elsewhere."""


class Process:
    """A child of this process, however it came to be; `stderr_fd` is where its words can be read.

    Raises OSError where it cannot be watched; then it has been ended and reaped, and that file is closed.
    """

    def __init__(self, pid: int, stderr_fd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """The exit status, negative for a signal; None while it runs."""
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError as error:
            os.close(stderr_fd)
            if error.errno != errno.ESRCH:  # it was not reaped elsewhere: the number is still its own
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)
        self._words = _Words(stderr_fd)

    @property
    def stderr(self) -> Sequence[str]:
        """Its last lines."""
        return self._words.lines

    def kill(self) -> None:
        """Send SIGKILL; nothing after the end."""
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send a signal; nothing after the end."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> int:
        """The exit status, once it has ended."""
        return await asyncio.shield(self._ended)

    async def end(self) -> None:
        """Kill it and see it to its end, also when cancelled meanwhile: after SIGKILL that takes no time."""
        self.kill()
        cancelled: asyncio.CancelledError | None = None
        while self.returncode is None:
            try:
                await self.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        self.hang_up()
        if cancelled is not None:
            raise cancelled

    @property
    def heard_out(self) -> asyncio.Future[None]:
        """Done when no process can write to its stderr any more."""
        return self._words.over

    def hang_up(self) -> None:
        """Listen no more."""
        self._words.hang_up()

    def _reap(self) -> None:
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            code = _UNKNOWN_STATUS
        else:
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(status)
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        _reap_group(self.pid, _GROUP_LOOKS)
        self.returncode = code
        self._ended.set_result(code)


def _reap_group(pid: int, looks: int) -> None:
    """Reap what a child that led a group of its own has left to us: its children die with it, a moment later."""
    try:
        while os.waitpid(-pid, os.WNOHANG)[0]:
            pass
    except ChildProcessError:  # there is none, or it is another process's
        return
    if looks:
        asyncio.get_running_loop().call_later(_GROUP_PAUSE_S, _reap_group, pid, looks - 1)


class _Words:
    """What is written to a pipe, as its last lines. Owns the end that is read."""

    def __init__(self, fd: int) -> None:
        self.lines: deque[str] = deque(maxlen=_STDERR_LINES)
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rest = b""
        self._fd = fd
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._read)

    def hang_up(self) -> None:
        """Read no more; what came behind the last line is one, too."""
        if self.over.done():
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self.lines.append(self._rest.decode(errors="replace"))
        self.over.set_result(None)

    def _read(self) -> None:
        data = os.read(self._fd, _READ_BYTES)
        if not data:
            self.hang_up()
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self.lines.extend(line.decode(errors="replace") for line in lines)
        self._rest = rest[-_LONGEST_LINE:]


def start(command: Sequence[str], *, fds: Sequence[int], env: Mapping[str, str]) -> Process:
    """Run a command in a session of its own that inherits only these files. Raises OSError."""
    ours, theirs = os.pipe()
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            pass_fds=fds,
            start_new_session=True,
            env=env,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    popen.returncode = 0  # it is ours to reap, not the object's
    return Process(popen.pid, ours)
