"""Where workers keep computed prompts in host memory: a folder per model that outlives its worker, under one cap.

Owns the folders and who may fill how much of them; what lies in the files is the workers' business. The cap holds for
all models together, loaded or not. Whatever is in the folders belongs to this server: it goes when the server ends,
and what a server that was killed has left goes at the next start.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.messages import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - a folder of our own in it, for this user only
_LOCK: Final = "lock"
_SHARE_OF_FOLDER: Final = 0.5
"""Of what the file system has free, because others use it too."""
_LEAST_BYTES: Final = 1 << 20
_LOG = logging.getLogger("onecard.conversations")


@dataclass
class Conversations:
    """See the module's text. `root` is None where nothing is kept."""

    root: Path | None
    max_bytes: int
    disk_root: Path | None = None
    disk_bytes: int = 0
    n_models: int = 1
    """How many may want a share."""
    _lock: int = -1
    _granted: dict[str, int] = field(default_factory=dict)

    def grant(self, model: str) -> Store | None:
        """A folder for a worker about to start and the bytes it may fill; None where there is nothing to give.

        With other models about, half of what is not granted yet; older files of models that are not loaded make room.
        """
        self.release(model)
        left = self.max_bytes - sum(self._granted.values())
        share = left if self.n_models == 1 else left // 2
        if self.root is None or share < _LEAST_BYTES:
            return None
        folder = self.root / _folder_name(model)
        folder.mkdir(mode=0o700, exist_ok=True)
        self._granted[model] = share
        _shrink([folder], share)
        mine = {_folder_name(name) for name in self._granted}
        others = [other for other in self.root.iterdir() if other.is_dir() and other.name not in mine]
        _shrink(others, self.max_bytes - sum(self._granted.values()))
        disk = "" if self.disk_root is None else str(self.disk_root / _folder_name(model))
        return Store(str(folder), share, disk, self.disk_bytes // self.n_models)

    def release(self, model: str) -> None:
        """The model's worker is gone; its files stay."""
        self._granted.pop(model, None)

    @property
    def used_bytes(self) -> int:
        """What all files take."""
        return sum(n_bytes for _, n_bytes, _ in _files(self.root.iterdir())) if self.root is not None else 0

    def close(self) -> None:
        """Remove everything; only once no worker is left."""
        if self.root is not None:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_conversations(
    max_bytes: int,
    *,
    n_models: int,
    within: Path = SHARED_MEMORY,
    disk_root: Path | None = None,
    disk_bytes: int = 0,
) -> Conversations:
    """Clean up after servers that are no more, and make this one's folder; without memory to give there is none."""
    try:
        _sweep(within)
        status = os.statvfs(within)
        max_bytes = min(max_bytes, int(status.f_bavail * status.f_frsize * _SHARE_OF_FOLDER))
        if max_bytes < _LEAST_BYTES:
            return Conversations(None, 0)
        root = Path(tempfile.mkdtemp(prefix=_prefix(), dir=within))  # for this user only
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        _LOG.warning("conversations_off reason=%s hint=%s", error.strerror, "they are computed again after a swap")
        return Conversations(None, 0)
    disk = disk_root if disk_bytes >= _LEAST_BYTES else None
    return Conversations(root, max_bytes, disk, disk_bytes if disk else 0, max(1, n_models), lock)


def _prefix() -> str:
    return f"onecard-{os.getuid()}-"


def _sweep(within: Path) -> None:
    """Remove the folders whose servers have ended: nobody holds their locks."""
    for folder in within.glob(f"{_prefix()}*"):
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _folder_name(model: str) -> str:
    """Names of models hold slashes and whatever else."""
    return hashlib.sha256(model.encode()).hexdigest()[:24]


def _shrink(folders: list[Path], max_bytes: int) -> None:
    """Remove files, those least recently used first, until the folders hold no more than that."""
    files = sorted(_files(folders))
    excess = sum(n_bytes for _, n_bytes, _ in files) - max_bytes
    for _, n_bytes, path in files:
        if excess <= 0:
            return
        path.unlink(missing_ok=True)
        excess -= n_bytes


def _files(folders: Iterator[Path] | list[Path]) -> list[tuple[float, int, Path]]:
    """When each file was used last, its bytes, and where it is."""
    found = []
    for folder in folders:
        if not folder.is_dir():
            continue
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # a worker replaces its files at any time
                status = path.stat()
                found.append((status.st_mtime, status.st_blocks * 512, path))
    return found
