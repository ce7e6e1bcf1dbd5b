"""Where workers keep cached prefixes in host memory: a folder per model that outlives its worker, under one cap.

Owns the folders and who may fill how much of them (`shares` decides); what lies in the files is the workers' business.
The cap holds for all models together, loaded or not. Whatever is in the folders, on a disk too, belongs to this server:
it goes when the server ends, and what a server that was killed has left goes at the next start.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.machine import host
from backends.messages import Store
from backends.prefix.eviction_score import SUFFIX, cost_of, eviction_score
from server.memory.shares import Change, Kept, Shares
from server.own_folder import OwnFolder, made_in, sweep
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_SHARE_OF_FOLDER: Final = 0.5
"""Of what the file system has free, because others use it too."""
_LEAST_BYTES: Final = 1 << 20
_LOG = logging.getLogger("onecard.prefix_cache")


@dataclass
class PrefixCache:
    """See the module's text. `root` is None where nothing is kept."""

    root: OwnFolder | None
    max_bytes: int
    disk: OwnFolder | None = None
    disk_bytes: int = 0
    n_models: int = 1
    """How many share the disk."""
    _shares: Shares = field(default_factory=Shares)
    _listeners: dict[str, Callable[[int], None]] = field(default_factory=dict)

    @property
    def reserved_bytes(self) -> int:
        """The most that all files can come to before anybody is told otherwise."""
        return self._shares.reserved_bytes

    @property
    def n_loaded(self) -> int:
        """Workers that may keep something."""
        return self._shares.n_loaded

    @property
    def used_bytes(self) -> int:
        """What all files take."""
        return sum(n_bytes for _, n_bytes, _ in _files(self.root.path.iterdir())) if self.root is not None else 0

    def join(self, model: str, room: int) -> Store | None:
        """A folder for a worker about to start, with what it may hold of so much room; None where nothing is kept."""
        if self.root is None:
            return None
        folder = self.root.path / _folder_name(model)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            _off(error)
            return None
        bound, leaving = self._shares.join(model, room)
        _remove(leaving)
        disk = "" if self.disk is None else str(self.disk.path / _folder_name(model))
        return Store(str(folder), bound, disk, self.disk_bytes // self.n_models)

    def listens(self, model: str, keep: Callable[[int], None]) -> None:
        """The worker takes new bounds from now on, and confirms each."""
        self._listeners[model] = keep

    def confirm(self, model: str, n_bytes: int) -> None:
        """The worker holds no more than that."""
        self._shares.confirm(model, n_bytes)

    def leave(self, model: str) -> None:
        """The worker is gone; its files stay, but for one that it may have been writing."""
        self._listeners.pop(model, None)
        if self.root is None or not self._shares.has(model):
            return
        now_s, name = time.time(), _folder_name(model)
        kept = [
            Kept(str(path), n_bytes, eviction_score(cost_of(path.name), 0, now_s - used_s, n_bytes))
            for used_s, n_bytes, path in _finished(self.root.path / name)
        ]
        self._shares.leave(model, kept)
        if self.disk is not None:
            _finished(self.disk.path / name)

    def forget(self, model: str) -> None:
        """The model is no more: its files go, in memory and on disk. Only once its worker is gone."""
        self._shares.forget(model)
        for root in (self.root, self.disk):
            if root is not None:
                shutil.rmtree(root.path / _folder_name(model), ignore_errors=True)

    def fit(self, room: int) -> None:
        """Share so much room out anew: workers are told, files of models that are not loaded leave."""
        self._perform(self._shares.fit(room, listening=self._listeners))

    def before_leaving(self, model: str, room: int, *, n_loaded: int) -> None:
        """Have a worker that is about to end move to its disk what would have to leave memory without it.

        `room` is what will be there, beside so many loaded models.
        """
        if self.disk is not None and model in self._listeners:
            self._perform(self._shares.lessen(model, max(0, room) // (n_loaded + 1)))

    def close(self) -> None:
        """Remove everything; only once no worker is left."""
        for root in (self.root, self.disk):
            if root is not None:
                root.remove()
        self.root = self.disk = None
        self._shares = Shares()

    def _perform(self, change: Change) -> None:
        _remove(change.leaving)
        for model, n_bytes in change.bounds.items():
            self._listeners[model](n_bytes)


def open_prefix_cache(
    max_bytes: int,
    *,
    n_models: int,
    within: Path | None = None,
    disk_root: Path | None = None,
    disk_bytes: int = 0,
) -> PrefixCache:
    """Clean up after servers that are no more, and make this one's folders; without memory to give there is none.

    Without `within` the folder is in the first file system in memory that has room for it, or the roomiest one.
    """
    folders = host.memory_folders() if within is None else [within]
    if disk_root is not None:
        sweep([disk_root])
    try:
        sweep(folders)
        roomy = [(min(max_bytes, _room_in(folder)), folder) for folder in folders]
    except OSError as error:
        return _off(error)
    if not roomy or max_bytes < _LEAST_BYTES:
        return PrefixCache(None, 0)
    room, place = roomiest(roomy)
    if room < max_bytes:
        hint = f"give {place} more room, such as docker run --shm-size"
        wanted = format_size(max_bytes)
        _LOG.warning("prefix_cache_small have=%r wanted=%r hint=%r", format_size(room), wanted, hint)
    if room < _LEAST_BYTES:
        return PrefixCache(None, 0)
    try:
        root = made_in(place)
    except OSError as error:
        return _off(error)
    disk = _make_on_disk(disk_root) if disk_root is not None and disk_bytes >= _LEAST_BYTES else None
    return PrefixCache(root, room, disk, disk_bytes if disk else 0, max(1, n_models))


def roomiest(found: Sequence[tuple[int, Path]]) -> tuple[int, Path]:
    """Of folders and what could be had there the one with most, the first of equal ones."""
    return max(found, key=lambda pair: pair[0])


def _off(error: OSError) -> PrefixCache:
    _LOG.warning("prefix_cache_off reason=%r hint=%r", error.strerror, "they are computed again after a swap")
    return PrefixCache(None, 0)


def _room_in(folder: Path) -> int:
    status = os.statvfs(folder)
    return int(status.f_bavail * status.f_frsize * _SHARE_OF_FOLDER)


def _make_on_disk(within: Path) -> OwnFolder | None:
    try:
        within.mkdir(mode=0o700, parents=True, exist_ok=True)
        return made_in(within)
    except OSError as error:
        hint = "prefixes that leave memory are computed again"
        _LOG.warning("prefix_cache_disk_off reason=%r hint=%r", error.strerror, hint)
        return None


def _folder_name(model: str) -> str:
    """Names of models hold slashes and whatever else."""
    return hashlib.sha256(model.encode()).hexdigest()[:24]


def _remove(files: Iterable[Kept]) -> None:
    for file in files:
        Path(file.key).unlink(missing_ok=True)


def _finished(folder: Path) -> list[tuple[float, int, Path]]:
    """The files of a worker that is gone; what it had not finished is removed."""
    files = _files([folder])
    for _, _, path in files:
        if path.suffix != SUFFIX:
            path.unlink(missing_ok=True)
    return [file for file in files if file[2].suffix == SUFFIX]


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
