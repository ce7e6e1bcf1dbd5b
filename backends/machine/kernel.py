"""What our processes ask of the kernel for themselves: a name, a death, limits, and orphans to look after. Linux."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
CARDS: Final = ("/dev/nvidia", "/dev/dri", "/dev/kfd")
"""Where graphics cards are in the file system."""
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BLOCK_BYTES: Final = 1 << 20
ALONE: Final = threading.RLock()
"""Held by who changes a limit of the whole process for a while."""


def call_me(name: bytes) -> None:
    """What `ps` and `top` show for this process; at most 15 bytes."""
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(name), 0, 0, 0)


def die_with(parent_pid: int, *, status: int = 0) -> None:
    """Ask for SIGKILL when the parent dies, and exit at once if it already has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(status)


def adopt_orphans(*, wanted: bool) -> None:
    """Whether descendants whose parent ends become this process's children, and not those of process 1."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def limit_damage() -> None:
    """No core files (they hold prompts), and the kernel's out-of-memory killer takes this process before the server."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def anonymous_bytes() -> int:
    """Memory of this process that belongs to no file."""
    return _status_bytes("RssAnon")


def resident_bytes() -> int:
    """Memory of this process, that of files included."""
    return _status_bytes("VmRSS")


def forget_peak() -> bool:
    """Let `peak_bytes` begin anew; False where the kernel does not do it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """The most of `resident_bytes` since `forget_peak`."""
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = [line for line in lines if line.startswith(f"{name}:")]
    return int(found[0].split()[1]) * 1024 if found else 0


def memory_limit() -> tuple[int, int]:
    """What `at_most` lowers, in bytes: soft and hard, or RLIM_INFINITY."""
    return resource.getrlimit(resource.RLIMIT_DATA)


USUAL_MEMORY_LIMIT: Final = memory_limit()
"""That of this process before `at_most` has lowered it for the first time."""


@contextlib.contextmanager
def at_most(more_bytes: int) -> Iterator[None]:
    """Within it no thread of this process gets memory that would make it larger by more than that: MemoryError.

    The limit is the process's: never nested, and no thread is started inside: stacks count. Others wait meanwhile.
    """
    with ALONE:
        yield from _at_most(more_bytes)


def _at_most(more_bytes: int) -> Iterator[None]:
    soft, hard = memory_limit()
    has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()
    limit = has + more_bytes
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def give_back_freed() -> None:
    """Return what was freed and is still kept for later; not every C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def busyness(pid: int) -> tuple[int, int]:
    """Of a child: processor time in ticks of 10 ms, and bytes and pages that it has read. Raises OSError when gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    n_read = 0
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
        n_read = sum(int(line.split()[1]) for line in lines if line.startswith(("rchar:", "read_bytes:")))
    return int(fields[11]) + int(fields[12]), n_read + int(fields[9])


def share_few_arenas(n: int) -> None:
    """Let all threads allocate from so many arenas, and large blocks from the system alone, where they go back to.

    For glibc; other C libraries have no arenas.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, n)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)


def n_threads() -> int:
    """Threads of this process, those of libraries too."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def holds_a_card() -> bool:
    """Whether this process has opened a graphics card: a copy of it could not use that any more."""
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(fd.readlink()).startswith(CARDS):
                return True
    return False


def pages_in_cache(fd: int, size: int, offsets: Sequence[int]) -> list[bool] | None:
    """Which of the pages at these offsets of a file the page cache holds; None where the kernel does not tell.

    The file is mapped and never touched: reading a page, even one that must not wait, makes the kernel fetch more.
    """
    if size < 1:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    nowhere, length = ctypes.c_void_p(None), ctypes.c_size_t(size)
    mapped = libc.mmap(nowhere, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_int64(0))
    if mapped in (None, ctypes.c_void_p(-1).value):
        return None
    page, found, one = resource.getpagesize(), [], ctypes.c_ubyte()
    try:
        for offset in offsets:
            if libc.mincore(ctypes.c_void_p(mapped + offset // page * page), ctypes.c_size_t(1), ctypes.byref(one)):
                return None
            found.append(bool(one.value & 1))
    finally:
        libc.munmap(ctypes.c_void_p(mapped), length)
    return found
