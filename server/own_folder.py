"""A folder that belongs to this server as long as it lives: locked, gone at its end, swept away after a crash."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

_LOCK: Final = "lock"


def user_folder(variable: str, usual: str) -> Path:
    """onecard's folder below the one that a variable such as `XDG_CACHE_HOME` names, or below its usual place.

    A relative path counts as none (XDG Base Directory Specification).
    """
    home = os.environ.get(variable, "")
    return (Path(home) if Path(home).is_absolute() else Path(usual).expanduser()) / "onecard"


@dataclass(eq=False)
class OwnFolder:
    """One folder; `lock` is held until it is removed."""

    path: Path
    lock: int

    def remove(self) -> None:
        """Everything in it, and then the lock."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def made_in(within: Path) -> OwnFolder:
    """A new folder for this user only, locked before it has the name that others sweep. Raises OSError."""
    made = Path(tempfile.mkdtemp(prefix=f"new-{_prefix()}", dir=within))
    lock = os.open(made / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    path = made.with_name(made.name.removeprefix("new-"))
    made.rename(path)
    return OwnFolder(path, lock)


def sweep(places: Sequence[Path]) -> None:
    """Remove the folders whose servers have ended: their locks are free."""
    for folder in (folder for within in places for folder in within.glob(f"{_prefix()}*")):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _prefix() -> str:
    return f"onecard-{os.getuid()}-"
