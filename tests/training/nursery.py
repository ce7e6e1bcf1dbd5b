"""Training processes without the seconds of their imports: forked, one after the other, by a process that has them.

Each is what the server starts (`backends.training.__main__.serve`), on a socket of its own, and dies with the nursery.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backends.border.child import environment
from backends.messages.training import Recipe, Train
from tests.training.process import Trainer

N_BYTES = 8


class Forked:
    """One of them, while it is the nursery's last."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self.pid = self._number()
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)  # the nursery has not waited for it before we ask, so the number is its own

    def wait(self) -> int:
        """Its end as `subprocess` tells it: -9 for SIGKILL."""
        if self.returncode is None:
            self._line.sendall(b"w")
            self.returncode = self._number()
        return self.returncode

    def _number(self) -> int:
        data = self._line.recv(N_BYTES, socket.MSG_WAITALL)
        assert len(data) == N_BYTES, "the nursery has ended"
        return int.from_bytes(data, "big", signed=True)


@contextmanager
def nursery() -> Iterator[socket.socket]:
    """The socket on which it is asked for processes."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.training.nursery", str(theirs.fileno())]
    env = {**environment(os.environ), "OMP_NUM_THREADS": "1"}
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), env=env) as process:
        theirs.close()
        try:
            yield ours
        finally:
            process.kill()


@contextmanager
def forked(line: socket.socket, recipe: Recipe) -> Iterator[Trainer[Forked]]:
    """A process that was told its recipe; ended behind the block."""
    ours, theirs = socket.socketpair()
    with ours:
        socket.send_fds(line, [b"f"], [theirs.fileno()])
        process = Forked(line)
        theirs.close()
        try:
            trainer = Trainer(process, ours)
            trainer.send(Train(recipe))
            yield trainer
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGKILL)
                process.wait()


def main() -> None:
    from backends.training import job  # noqa: F401 - what takes the seconds
    from backends.training.__main__ import serve

    line = socket.socket(fileno=int(sys.argv[1]))
    child = 0
    while True:
        word, files, _, _ = socket.recv_fds(line, 1, 1)
        if not word:
            return
        if word == b"w":
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            line.sendall(status.to_bytes(N_BYTES, "big", signed=True))
            continue
        nursery_pid = os.getpid()
        child = os.fork()
        if not child:
            line.close()
            serve(files[0], nursery_pid)
        os.close(files[0])
        line.sendall(child.to_bytes(N_BYTES, "big", signed=True))


if __name__ == "__main__":
    main()
