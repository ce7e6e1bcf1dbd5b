"""Where the files of requests are until their jobs have ended: one folder, under one cap, never in memory.

Each file is gone with its request, however that ends; what a server that was killed has left goes with the
first file of the next one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.messages import SpoolFile
from server.errors import ApiError
from server.own_folder import OwnFolder, made_in, sweep, user_folder
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

_RETRY_S: Final = 5


class Spool:
    """The folder of one server, made for its first file."""

    def __init__(self, max_bytes: int, within: Callable[[], Path]) -> None:
        self._max_bytes = max_bytes
        self._within = within
        self._folder: OwnFolder | None = None
        self.used_bytes = 0
        """By all files together."""

    def begin(self) -> SpoolWriter:
        """A new file, empty. Raises ApiError 503 where the disk has no place for it."""
        try:
            if self._folder is None:
                within = self._within()
                within.mkdir(mode=0o700, parents=True, exist_ok=True)
                sweep([within])
                self._folder = made_in(within)
            fd, name = tempfile.mkstemp(dir=self._folder.path)
        except OSError as error:
            raise no_place(error) from None
        return SpoolWriter(self, fd, Path(name))

    def take(self, n_bytes: int) -> None:
        """Count more bytes. Raises ApiError 503 where others have used the cap up."""
        if self.used_bytes + n_bytes > self._max_bytes:
            raise ApiError(
                503,
                f"The files of all requests together may take {format_size(self._max_bytes)}, and there is no room "
                "left. Retry in a moment. hint: the operator sets max_upload_bytes in [server]",
                type="server_error",
                code="uploads_full",
                headers={"retry-after": str(_RETRY_S)},
            )
        self.used_bytes += n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Bytes of a file that is gone."""
        self.used_bytes -= n_bytes

    def close(self) -> None:
        """Remove everything."""
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


class SpoolWriter:
    """One file while it arrives, and until it is removed."""

    def __init__(self, spool: Spool, fd: int, path: Path) -> None:
        self._spool = spool
        self._fd = fd
        self._path = path
        self._hash = hashlib.sha256()
        self.n_bytes = 0

    def take(self, n_bytes: int) -> None:
        """Count bytes that are about to be written. Raises ApiError 503."""
        self._spool.take(n_bytes)
        self.n_bytes += n_bytes

    def write(self, data: bytes) -> None:
        """Append what was counted; blocks on the disk. Raises ApiError 503."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            raise no_place(error) from None
        self._hash.update(data)

    def finish(self, *, media_type: str, name: str) -> SpoolFile:
        """The whole file, as a job names it."""
        self._close()
        return SpoolFile(str(self._path), self.n_bytes, self._hash.hexdigest(), media_type, name)

    def remove(self) -> None:
        """Whole or not, it is gone; idempotent."""
        self._close()
        self._path.unlink(missing_ok=True)
        self._spool.give_back(self.n_bytes)
        self.n_bytes = 0

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def no_place(error: OSError) -> ApiError:
    """The disk does not take the file."""
    why = (error.strerror or "the disk refuses").lower()
    return ApiError(
        503, f"The file could not be kept while it is worked on: {why}.", type="server_error", code="uploads_full"
    )


def spool_folder() -> Path:
    """In the user's cache, which is on a disk where `/tmp` may be memory."""
    return user_folder("XDG_CACHE_HOME", "~/.cache") / "uploads"
