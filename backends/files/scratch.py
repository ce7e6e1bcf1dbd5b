"""Folders for half-done work beside the target, that no interruption leaves behind.

A lock in each tells whether its process lives: what SIGKILL or a power cut left is swept away by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_PREFIX: Final = ".onecard-"
_LOCK: Final = ".lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, gone when the block ends, however it ends; leftovers of the dead go with it."""
    folder: Path | None = None
    lock: int | None = None
    try:
        with _uninterrupted():
            _sweep(parent)
            folder, lock = _made(parent)
        yield folder
    finally:
        with _uninterrupted():
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)


def _made(parent: Path) -> tuple[Path, int]:
    """A folder and its lock, which is held. Another process that sweeps before it is held takes the folder away."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / _LOCK).exists():
            return folder, lock
        os.close(lock)


def _sweep(parent: Path) -> None:
    """Remove the folders whose process is gone: the kernel has let go of their locks."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # about to be made, or already going
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: an interrupt between making a folder and knowing its name would lose it."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in seen:
            signal.raise_signal(held)
