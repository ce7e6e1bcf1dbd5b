"""Files and folders that are whole or not there: written aside, synced, renamed. What stood there stays until then."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from backends.files.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that takes its name when the block ends well, and else is removed.

    The block may write a file or a folder there. Raises OSError where the disk refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(target.parent) as folder:
        temporary = folder / target.name
        yield temporary
        sync(temporary)
        _swap(temporary, target)
        sync(target.parent, deep=False)


def sync(path: Path, *, deep: bool = True) -> None:
    """Bring a file, or a folder and where `deep` the files in it, to the disk."""
    inside = sorted(path.iterdir()) if deep and path.is_dir() else []
    for entry in [*inside, path]:
        fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _swap(temporary: Path, target: Path) -> None:
    """Rename; two folders change places in one step, so that a process that dies here leaves the old or the new one.

    Where the file system cannot do that, the old folder steps aside and comes back on error.
    """
    if not target.is_dir():
        temporary.replace(target)
        return
    if _exchange(temporary, target):
        remove(temporary)
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE; False where the C library, the kernel or the file system lacks it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
