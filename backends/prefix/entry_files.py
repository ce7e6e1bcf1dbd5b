"""One folder of cached prefixes, a file each: written once, renamed into place, mapped when they are needed.

Owns the format. A file that is not whole, or of another model, layout or version, is removed and never given out. The
folder is the server's; only its owner may read what is in it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from backends.prefix.eviction_score import SUFFIX, file_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from backends.prefix.keys import Keys

_MAGIC: Final = b"onecard-prefix-2"
_KEY_BYTES: Final = 8
_HEAD_BYTES: Final = 4096
"""A page for the label, so that what follows is aligned."""


class Label(msgspec.Struct, frozen=True):
    """What a file says about itself."""

    identity: str
    """Of the model, its file, the layout of its cache and the versions of whatever writes it."""
    n_tokens: int
    n_state: int
    """Bytes of the state."""
    domain: str = ""
    session: str = ""
    least: int = 0
    """The shortest prefix the state can be cut to."""
    cost_us: float = 0.0
    """What computing it again would take, beyond what other states share with it."""
    partial: bool = False
    """A checkpoint: only what layers with a window or a running state hold. The rest comes from a whole state."""
    checksum: int | None = None
    """Of label, keys and state; None in host memory, which no power cut leaves half written."""


@dataclass(eq=False)
class EntryFile:
    """One file of the folder."""

    path: Path
    label: Label
    keys: Keys
    used_s: float
    """Unix seconds of the last use; kept as the file's own time."""
    n_uses: int = 0
    pinned: bool = False
    """A request waits for it: it must not leave."""
    n_running: int = 0
    """Sequences in the pool that hold what a checkpoint lacks."""

    @property
    def n_bytes(self) -> int:
        """What the file takes, in whole pages."""
        return _pages(_HEAD_BYTES + _pages(self.keys.nbytes) + self.label.n_state)


def size_of(n_tokens: int, n_state: int) -> int:
    """What a file with so many keys and so large a state takes."""
    return _pages(_HEAD_BYTES + _pages(_KEY_BYTES * n_tokens) + n_state)


class EntryFolder:
    """See the module's text. `checked` writes and compares checksums."""

    def __init__(self, folder: Path, *, checked: bool) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._checked = checked
        self._number = 0

    def scan(self, identity: str) -> list[EntryFile]:
        """What a worker before this one has left; whatever else lies in the folder is removed."""
        found = []
        for path in sorted(self._folder.iterdir()):
            entry = self._read(path) if path.suffix == SUFFIX else None
            if entry is not None and entry.label.identity == identity:
                found.append(entry)
            else:
                path.unlink(missing_ok=True)
        return found

    def put(
        self, label: Label, keys: Keys, fill: Callable[[NDArray[np.uint8]], bool], *, now_s: float
    ) -> EntryFile | None:
        """Write a state that `fill` puts into `(n_state,) uint8`; None where that fails or the folder is full."""
        path = self._free_name(label.cost_us)
        part = path.with_suffix(".part")
        at = _HEAD_BYTES + _pages(keys.nbytes)
        try:
            file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            os.posix_fallocate(file, 0, at + label.n_state)  # a full folder says so here, and not by a signal later
            view = np.frombuffer(mmap.mmap(file, at + label.n_state), np.uint8)
            done = fill(view[at:])
            if done and self._checked:
                label = msgspec.structs.replace(label, checksum=_checksum(label, keys, view[at:]))
            head = _MAGIC + msgspec.json.encode(label)
            view[: len(head)] = np.frombuffer(head, np.uint8)
            view[_HEAD_BYTES : _HEAD_BYTES + keys.nbytes] = np.ascontiguousarray(keys).view(np.uint8)
            if not done or len(head) >= _HEAD_BYTES:
                return None
            os.utime(file, (now_s, now_s))
            part.rename(path)
            return EntryFile(path, label, keys, now_s)
        except OSError:
            return None
        finally:
            os.close(file)
            part.unlink(missing_ok=True)

    def open(self, entry: EntryFile) -> NDArray[np.uint8] | None:
        """The state of an entry as `(n_state,) uint8`; None when it is not there or not as it was written."""
        try:
            with entry.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with the last view of it
        except (OSError, ValueError):
            return None
        at = _HEAD_BYTES + _pages(entry.keys.nbytes)
        if len(mapped) != at + entry.label.n_state:
            return None
        view = np.frombuffer(mapped, np.uint8, offset=at)
        good = not self._checked or _checksum(entry.label, entry.keys, view) == entry.label.checksum
        return view if good else None

    def touch(self, entry: EntryFile, now_s: float) -> None:
        """It was of use."""
        entry.used_s = now_s
        entry.n_uses += 1
        with contextlib.suppress(OSError):
            os.utime(entry.path, (now_s, now_s))

    def drop(self, entry: EntryFile) -> None:
        """Remove it."""
        entry.path.unlink(missing_ok=True)

    def _free_name(self, cost_us: float) -> Path:
        while True:
            self._number += 1
            path = self._folder / file_name(self._number, cost_us)
            if not path.exists():
                return path

    def _read(self, path: Path) -> EntryFile | None:
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                head = file.read(_HEAD_BYTES)
                if not head.startswith(_MAGIC):
                    return None
                label = msgspec.json.decode(head[len(_MAGIC) :].rstrip(b"\0"), type=Label)
                whole = _HEAD_BYTES + _pages(_KEY_BYTES * label.n_tokens) + label.n_state
                if min(label.n_tokens, label.n_state) < 0 or status.st_size != whole:
                    return None
                keys = np.frombuffer(file.read(_KEY_BYTES * label.n_tokens), np.int64)
        except (OSError, msgspec.MsgspecError):
            return None
        return EntryFile(path, label, keys, status.st_mtime)


def _checksum(label: Label, keys: Keys, state: NDArray[np.uint8]) -> int:
    """Over everything that a wrong bit in would make a wrong answer of."""
    said = zlib.crc32(msgspec.json.encode(msgspec.structs.replace(label, checksum=None)))
    return zlib.crc32(state.data, zlib.crc32(np.ascontiguousarray(keys).data, said))


def _pages(n_bytes: int) -> int:
    return -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
