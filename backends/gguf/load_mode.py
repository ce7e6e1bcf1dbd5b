"""How a GGUF file gets into memory, chosen by what the page cache holds of it; and how far it has come.

A mapped file is read once and stays in the page cache, where the next load finds it. One that is read past the cache
(direct) leaves there what other models have, which is right for a file that would not stay in it anyway.
"""

from __future__ import annotations

import contextlib
import os
import resource
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from backends.backend import HeaderError
from backends.engine import LoadError
from backends.files import model_files
from backends.gguf.parts import split_parts
from backends.machine import host
from backends.machine.kernel import pages_in_cache
from backends.messages import FileLoad

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LoadMode = Literal["mmap", "direct", "lock"]
MODES: Final[tuple[LoadMode, ...]] = get_args(LoadMode)
_PROBES: Final = 64
_CACHED: Final = 0.9
"""From this share on a file counts as cached."""
_READING: Final = 0.8
"""The share of a cold load that is the reading of its file."""
_LOOK_EVERY_S: Final = 0.2


@dataclass(frozen=True)
class FileState:
    """What is known of a model's files before their load."""

    n_bytes: int
    cached: float
    """The share of them that the page cache holds, 0..1."""
    room_bytes: int
    """Memory that the page cache may still take."""


def cached_share(paths: Sequence[Path]) -> float:
    """The share of the files' pages that the page cache holds; 1 where the kernel cannot tell. Raises LoadError."""
    shares, n_bytes = 0.0, 0
    for path in paths:
        try:
            with model_files.opened(path) as file:
                found = pages_in_cache(file.fd, file.size, [file.size * i // _PROBES for i in range(_PROBES)])
                shares += file.size * (sum(found) / len(found) if found else 1.0)
                n_bytes += file.size
        except model_files.FileError as error:
            raise LoadError(str(error)) from None
    return shares / n_bytes if n_bytes else 1.0


def choose(wanted: object, state: FileState, *, on_card: bool) -> LoadMode:
    """What was asked for, else the fastest: a file that is cached, fits into the cache or stays on the CPU is mapped.

    Weights that go to a card are needed in host memory once only, so a file that the cache cannot hold is read past it.
    """
    if wanted in MODES:
        return wanted
    if on_card and state.cached < _CACHED and state.n_bytes > state.room_bytes:
        return "direct"
    return "mmap"


def check_lock(state: FileState, limit_bytes: int) -> None:
    """Whether the kernel would let this process lock the files in memory. Raises LoadError."""
    if limit_bytes not in (resource.RLIM_INFINITY, -1) and limit_bytes < state.n_bytes and os.geteuid() != 0:
        raise LoadError(
            f"load_mode = 'lock' needs {state.n_bytes} bytes of locked memory, and this process may lock {limit_bytes}."
            " hint: raise `ulimit -l` (LimitMEMLOCK of a service), or leave load_mode out"
        )


@dataclass(frozen=True)
class Loading:
    """One load: how the file gets into memory, what to call with the share of it that is done, what to tell of it."""

    mode: LoadMode
    loaded: Callable[[float], None]
    told: FileLoad


@contextlib.contextmanager
def watched(path: Path, wanted: object, progress: Callable[[float], None], *, on_card: bool) -> Iterator[Loading]:
    """Choose how; within it the page cache tells how much of a cold file has been read. Raises LoadError."""
    paths = files_of(path)
    state = FileState(sum(part.stat().st_size for part in paths), cached_share(paths), host.available_bytes())
    mode = choose(wanted, state, on_card=on_card)
    if mode == "lock":
        check_lock(state, resource.getrlimit(resource.RLIMIT_MEMLOCK)[0])
    told = FileLoad(mode, state.n_bytes, round(state.cached, 3))
    if mode == "direct" or state.cached >= _CACHED:
        yield Loading(mode, progress, told)
        return
    shares, stop = _Shares(progress), threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_EVERY_S):
            with contextlib.suppress(LoadError):
                shares.read(cached_share(paths))

    thread = threading.Thread(target=look, name="load-progress", daemon=True)
    thread.start()
    try:
        yield Loading(mode, shares.loaded, told)
    finally:
        stop.set()
        thread.join()


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of a model whose first one is `path`. Raises LoadError."""
    try:
        return split_parts(path)
    except HeaderError as error:
        raise LoadError(str(error)) from None


class _Shares:
    """Of a cold load: its reading, and then what the library makes of it; it never goes back."""

    def __init__(self, progress: Callable[[float], None]) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._read = self._loaded = self._told = 0.0

    def read(self, share: float) -> None:
        with self._lock:
            self._read = share
            self._tell()

    def loaded(self, share: float) -> None:
        with self._lock:
            self._loaded = share
            self._read = max(self._read, share)  # what is made of it has been read
            self._tell()

    def _tell(self) -> None:
        share = _READING * self._read + (1 - _READING) * self._loaded
        if share > self._told:
            self._told = share
            self._progress(share)
