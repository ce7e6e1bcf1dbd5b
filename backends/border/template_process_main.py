"""The template process: does a backend's imports, and then becomes as many workers as it is asked for.

It has one thread, no model and no graphics card open, so that a copy of it is as good as a new process, and makes sure
of that before it offers copies. Each copy is made by a child that ends at once, which leaves the copy to the server.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import time
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from backends import registry
from backends.border.link import EXIT_ENGINE_ERROR, EXIT_ORPHANED, leave, note
from backends.border.template_process import MOST_BYTES, Copied, Unfit, Warm
from backends.border.worker_main import serve
from backends.engine import LoadError
from backends.machine.kernel import anonymous_bytes, call_me, die_with, holds_a_card, limit_damage, n_threads
from backends.machine.started import arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.border.template_process import Word

_STDERR: Final = 2
_ADOPTED_WITHIN_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.0002


def why_unfit() -> str | None:
    """What keeps copies of this process from being workers; None when nothing does."""
    if (n := n_threads()) != 1:
        return f"the imports started {n - 1} threads, which a copy would not have"
    return "the imports opened a graphics card, which a copy could not use" if holds_a_card() else None


def make_copy(sock: socket.socket, files: Sequence[int], server_pid: int) -> int:
    """Become a worker in a copy that belongs to the server; here, its pid. Raises OSError."""
    told, telling = os.pipe()
    go_between = os.fork()
    if go_between == 0:
        try:
            pid = os.fork()
            if pid == 0:
                os.close(told)
                os.close(telling)
                sock.close()
                socket_fd, stderr_fd = files
                _become_worker(socket_fd, stderr_fd, server_pid)
            os.write(telling, str(pid).encode())
            os._exit(0)
        except BaseException as error:
            note(error)
        leave(EXIT_ENGINE_ERROR)  # never back into the template's own loop
    os.close(telling)
    os.waitpid(go_between, 0)  # from now on the copy is the server's child
    with os.fdopen(told, "rb") as opened:
        text = opened.read()
    if not text:
        raise OSError("the copy could not be made")
    return int(text)


def _become_worker(socket_fd: int, stderr_fd: int, server_pid: int) -> NoReturn:
    os.setsid()
    os.dup2(stderr_fd, _STDERR)
    os.close(stderr_fd)
    deadline = time.monotonic() + _ADOPTED_WITHIN_S
    while os.getppid() != server_pid and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    serve(socket_fd, server_pid)


def main() -> NoReturn:
    """Run a template process on the socket `--fd` until the server is gone."""
    args = arguments("onecard-template", "backend")
    die_with(args.parent, status=EXIT_ORPHANED)
    limit_damage()
    call_me(b"onecard-template")
    os.set_inheritable(args.fd, False)
    sock = socket.socket(fileno=args.fd)
    with contextlib.suppress(LoadError):  # the load runs into it again and explains it
        registry.engine_of(args.backend)
    gc.collect()
    gc.freeze()
    unfit = why_unfit()
    _tell(sock, Warm(anonymous_bytes()) if unfit is None else Unfit(unfit))
    if unfit is not None:
        leave(0)
    while True:
        packet, files, _, _ = socket.recv_fds(sock, MOST_BYTES, 2)
        if not packet:
            leave(EXIT_ORPHANED)
        try:
            _tell(sock, Copied(make_copy(sock, files, args.parent)))
        except OSError as error:
            _tell(sock, Unfit(error.strerror or str(error)))
        for fd in files:
            os.close(fd)


def _tell(sock: socket.socket, word: Word) -> None:
    try:
        sock.send(msgspec.msgpack.encode(word))
    except OSError:
        leave(EXIT_ORPHANED)


if __name__ == "__main__":
    main()
