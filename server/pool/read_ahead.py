"""The next model's file into the page cache, while the model that makes room for it still drains.

Owns one thread at a time; a load never waits for it. It reads into one small buffer and forgets what it read: Linux
cuts a `POSIX_FADV_WILLNEED` to the device's read-ahead window, so that advice alone leaves most of a file on the disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from backends.files import model_files
from backends.machine import host
from backends.registry import recognised

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK_BYTES: Final = 2**20
LEFT_FREE_BYTES: Final = 512 * 2**20
"""Host memory that stays available; the page cache of the file comes out of the rest."""
_PROBES: Final = 16


class ReadAhead:
    """Listens to the pool; `path_of` tells where a model's files are now. For the event loop's thread only."""

    def __init__(self, path_of: Callable[[str], Path]) -> None:
        self._path_of = path_of
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def on_change(self, what: str, figures: dict[str, object]) -> None:
        """A model begins to leave for another one: read that one's file; a load begins: it reads for itself."""
        name = figures.get("for")
        if what in ("drains", "evicted") and isinstance(name, str):
            self._begin(self._path_of(name))
        elif what in ("loading", "draining"):
            self._stop.set()

    def join(self) -> None:
        """Wait for the thread, for tests."""
        if self._thread is not None:
            self._thread.join()

    def _begin(self, path: Path) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(target=_read, args=(path, self._stop), name="read-ahead", daemon=True)
        self._thread.start()


def files_of(path: Path) -> list[Path]:
    """The files that hold a model's weights. Raises OSError, HeaderError or FileError."""
    found = recognised(path)
    return list(found[1].weights) if found is not None else []


def _read(path: Path, stop: threading.Event) -> None:
    with contextlib.suppress(OSError, HeaderError, model_files.FileError):
        for file in files_of(path):
            with model_files.opened(file) as opened:
                pull_in(opened.fd, stop)


def pull_in(fd: int, stop: threading.Event) -> int:
    """Read what is not cached yet, chunk by chunk, until stopped or memory is short; the bytes read."""
    size, done, chunk = os.fstat(fd).st_size, 0, bytearray(CHUNK_BYTES)
    if is_cached(fd, size):
        return 0
    while done < size and not stop.is_set():
        if done % (64 * CHUNK_BYTES) == 0 and host.available_bytes() < LEFT_FREE_BYTES + 64 * CHUNK_BYTES:
            break
        n = os.preadv(fd, [chunk], done)
        if n == 0:
            break
        done += n
    return done


def is_cached(fd: int, size: int) -> bool:
    """Whether some pages over the whole file can be read without waiting for the disk."""
    for index in range(_PROBES):
        offset = size * index // _PROBES
        try:
            os.preadv(fd, [bytearray(1)], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError:  # a file system that cannot tell
            return False
    return True
