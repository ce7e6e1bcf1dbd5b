"""A process that cannot be watched: it is ended and reaped before anybody is told, and none of its files stays open."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from backends.border import process
from backends.border.child import start_child
from backends.messages import Report

ASLEEP = [sys.executable, "-c", "import signal; signal.pause()"]


class Unheard:
    """Owns a child that never comes to be."""

    def received(self, report: Report) -> None:
        raise AssertionError(report)

    def babbled(self) -> None:
        raise AssertionError

    def disconnected(self) -> None:
        raise AssertionError


class Sleeper:
    """Copies itself as a process that does nothing."""

    async def copy(self, *, socket_fd: int, stderr_fd: int) -> int:
        return self.begin(stderr_fd)

    def begin(self, stderr_fd: int) -> int:
        return os.posix_spawn(sys.executable, ASLEEP, {}, file_actions=[(os.POSIX_SPAWN_DUP2, stderr_fd, 2)])


@pytest.fixture
def no_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)


def held() -> tuple[int, set[int]]:
    """Files that are open, and children: those of other tests are there before, but for garbage."""
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir()), {child.pid for child in psutil.Process().children()}


async def test_a_process_without_a_pidfd_is_ended(no_pidfd: None) -> None:
    before = held()

    with pytest.raises(OSError, match="Too many open files"):
        process.start(ASLEEP, fds=(), env={})

    assert held() == before


async def test_a_copy_without_a_pidfd_is_ended(no_pidfd: None) -> None:
    before = held()

    with pytest.raises(OSError, match="Too many open files"):
        await start_child(Unheard(), copier=Sleeper())

    assert held() == before


async def test_a_process_whose_socket_cannot_be_watched_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    before, watch = held(), loop.add_reader

    def no_sockets(file: Any, *rest: Any) -> None:
        if isinstance(file, socket.socket):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(file, *rest)

    monkeypatch.setattr(loop, "add_reader", no_sockets)

    with pytest.raises(OSError, match="No space left"):
        await start_child(Unheard())

    assert held() == before
