"""Files by id: contents under `files/`, what they are in a table. A file is there whole or not at all.

Owns names, owners and the end of their time. Blocks on the disk: for threads.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.errors import ApiError, clip
from server.files.folder import no_place, rows_of_page
from server.settings.sizes import format_size

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from server.files.folder import DataFolder, Page

TABLE: Final = """
CREATE TABLE IF NOT EXISTS files (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, name TEXT NOT NULL,
    purpose TEXT NOT NULL, n_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
);
"""
MOST_BYTES: Final = 16 << 30
"""Of all files of one owner, for an upload to be kept. Answers of batches count, and are kept whatever they hold."""
_COLUMNS: Final = "id, owner, name, purpose, n_bytes, created_at, expires_at"


@dataclass(frozen=True)
class StoredFile:
    """What is known of a file. Times are seconds since 1970."""

    id: str
    owner: str
    """Whose it is: see `server.accounts`."""
    name: str
    purpose: str
    n_bytes: int
    created_at: int
    expires_at: int | None


class FileStore:
    """Of one data folder."""

    def __init__(self, folder: DataFolder, clock: Callable[[], float], *, most_bytes: int = MOST_BYTES) -> None:
        self._folder = folder
        self._clock = clock
        self._most_bytes = most_bytes

    def keep(self, path: Path, *, owner: str, name: str, purpose: str, lifetime_s: int | None) -> StoredFile:
        """Take a file over from where it lies. Raises ApiError 413 where its owner has too much, and 503."""
        self.sweep()
        file = self._described(_new_id(), path, owner=owner, name=name, purpose=purpose, lifetime_s=lifetime_s)
        if (held := self._held(owner)) + file.n_bytes > self._most_bytes:
            yours = f"{format_size(held)} of {format_size(self._most_bytes)}"
            told = f"The file cannot be kept: it has {format_size(file.n_bytes)}, and yours hold {yours}."
            raise ApiError(413, f"{told} hint: delete some", code="files_too_large")
        target = self._content(file.id)
        try:
            shutil.move(path, target)
            target.chmod(0o600)
        except OSError as problem:
            target.unlink(missing_ok=True)
            raise no_place(problem) from None
        with self._folder.transaction() as db:
            self.enter(db, file)
        return file

    def write(
        self, lines: Iterable[bytes], *, owner: str, name: str, purpose: str, lifetime_s: int | None
    ) -> StoredFile | None:
        """Lay down the contents of a new file, which `enter` makes one; None where there are no lines.

        Raises ApiError 503.
        """
        file_id = _new_id()
        try:
            with self._content(file_id).open("xb") as out:
                out.writelines(lines)
                out.flush()
                os.fsync(out.fileno())
        except OSError as problem:
            self._content(file_id).unlink(missing_ok=True)
            raise no_place(problem) from None
        path = self._content(file_id)
        if not path.stat().st_size:
            path.unlink()
            return None
        return self._described(file_id, path, owner=owner, name=name, purpose=purpose, lifetime_s=lifetime_s)

    def discard(self, files: Iterable[StoredFile]) -> None:
        """Take away what was written and is not entered."""
        for file in files:
            self._content(file.id).unlink(missing_ok=True)

    def enter(self, db: sqlite3.Connection, file: StoredFile) -> None:
        """In a transaction of the caller's: its contents lie where they belong, now it is a file."""
        values = [getattr(file, column) for column in _COLUMNS.split(", ")]
        db.execute(f"INSERT INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)  # noqa: S608

    def get(self, file_id: str, owner: str | None) -> StoredFile:
        """One of this owner's, or of any (None). Raises ApiError 404."""
        with self._folder.transaction() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM files WHERE id = ?", (file_id,)).fetchone()  # noqa: S608
        file = None if row is None else StoredFile(*row)
        if file is None or owner not in (None, file.owner) or self._over(file):
            raise no_such_file(file_id)
        return file

    def listed(self, owner: str | None, page: Page, *, purpose: str | None = None) -> tuple[list[StoredFile], bool]:
        """A page, and whether there are more behind it. Raises ApiError 404 for an unknown place in the list."""
        asked = "(? IS NULL OR owner = ?) AND (? IS NULL OR purpose = ?) AND (expires_at IS NULL OR expires_at > ?)"
        select = f"SELECT {_COLUMNS} FROM files WHERE {asked}"  # noqa: S608
        with self._folder.transaction() as db:
            after = None if page.after is None else self._place(db, page.after, owner)
            values = (owner, owner, purpose, purpose, self._clock())
            rows, has_more = rows_of_page(db, select, values, page, after)
        return [StoredFile(*row) for row in rows], has_more

    def delete(self, file_id: str, owner: str | None) -> None:
        """Raises ApiError 404."""
        self.get(file_id, owner)
        with self._folder.transaction() as db:
            db.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self._content(file_id).unlink(missing_ok=True)

    def content(self, file: StoredFile) -> Path:
        """Where its bytes are. Raises ApiError 404 where someone has taken them away."""
        path = self._content(file.id)
        if not path.is_file():
            raise ApiError(404, f"The contents of {file.id} are gone from {path.parent}.", code="file_lost")
        return path

    def sweep(self) -> None:
        """Remove what has had its time, and contents that never became files: a server was killed meanwhile."""
        with self._folder.transaction() as db:
            db.execute("DELETE FROM files WHERE expires_at <= ?", (self._clock(),))
            known = {row[0] for row in db.execute("SELECT id FROM files")}
            for path in self._folder.contents.glob("file-*"):
                with contextlib.suppress(FileNotFoundError):  # one that is just being deleted
                    if path.name not in known and self._clock() - path.stat().st_mtime > _UNBORN_S:
                        path.unlink()

    @staticmethod
    def _place(db: sqlite3.Connection, file_id: str, owner: str | None) -> int:
        """In lists. Raises ApiError 404."""
        one = "SELECT place FROM files WHERE id = ? AND (? IS NULL OR owner = ?)"
        row = db.execute(one, (file_id, owner, owner)).fetchone()
        if row is None:
            raise no_such_file(file_id)
        return int(row[0])

    def _described(
        self, file_id: str, path: Path, *, owner: str, name: str, purpose: str, lifetime_s: int | None
    ) -> StoredFile:
        now = int(self._clock())
        ends = None if lifetime_s is None else now + lifetime_s
        return StoredFile(file_id, owner, name, purpose, path.stat().st_size, now, ends)

    def _held(self, owner: str) -> int:
        """Bytes of all files of an owner."""
        with self._folder.transaction() as db:
            return int(
                db.execute("SELECT COALESCE(SUM(n_bytes), 0) FROM files WHERE owner = ?", (owner,)).fetchone()[0]
            )

    def _content(self, file_id: str) -> Path:
        return self._folder.contents / file_id

    def _over(self, file: StoredFile) -> bool:
        return file.expires_at is not None and file.expires_at <= self._clock()


_UNBORN_S: Final = 3600.0
"""Contents may be so old before they are a file: an upload is moved first, and a result is written first."""


def _new_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def no_such_file(file_id: str) -> ApiError:
    """No file of this owner has the id."""
    return ApiError(404, f"No such File object: {clip(file_id)}", param="id", code="file_not_found")
