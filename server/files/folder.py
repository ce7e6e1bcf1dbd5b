"""The data folder of one server: a SQLite file and the contents of files, locked as long as the server lives.

It is opened by the first request that needs it, or at the start where an earlier run has left something to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from server.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

TABLES: Final = "files.sqlite"
"""Name of the SQLite file."""
_LOCK: Final = "files.lock"
_CONTENTS: Final = "files"
_VERSION: Final = 1


@dataclass(frozen=True)
class Page:
    """Which of a list are wanted."""

    limit: int
    after: str | None = None
    newest_first: bool = True


class DataFolder:
    """Blocks on the disk: for threads. One transaction at a time."""

    def __init__(self, within: Callable[[], Path], tables: Sequence[str]) -> None:
        """`tables`: what makes the tables of those who keep something here, each by `IF NOT EXISTS`."""
        self._within = within
        self._tables = tables
        self._turn = threading.Lock()
        self._lock: int | None = None
        self._db: sqlite3.Connection | None = None

    @property
    def has_something(self) -> bool:
        """Whether an earlier run has left a file of tables."""
        return (self._within() / TABLES).exists()

    @property
    def contents(self) -> Path:
        """Where contents of files lie, each under its id."""
        return self._within() / _CONTENTS

    @contextlib.contextmanager
    def transaction(self) -> Generator[sqlite3.Connection, None, None]:
        """All of it is kept, or nothing. Raises ApiError 503 where the folder cannot be had or written."""
        with self._turn:
            try:
                db = self._db or self._open()
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    yield db
            except (OSError, sqlite3.Error) as problem:
                raise no_place(problem) from None

    def close(self) -> None:
        """Let go of it; another server may have it."""
        with self._turn:
            if self._db is not None:
                self._db.close()
                self._db = None
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def _open(self) -> sqlite3.Connection:
        folder = self._within()
        self.contents.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ApiError(
                503,
                f"Another onecard server of this user holds {folder}, and files and batches are its. "
                "hint: ask that one, or start this one with another XDG_DATA_HOME",
                type="server_error",
                code="files_elsewhere",
                headers={"x-should-retry": "false"},
            ) from None
        try:
            db = sqlite3.connect(folder / TABLES, isolation_level=None, check_same_thread=False)
            # A commit outlives the process at once, and a power cut but for the last moments: those lines run again.
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                db.execute(f"PRAGMA {pragma}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _VERSION):
                raise OSError(0, f"{folder / TABLES} was written by a newer onecard")
            for table in self._tables:
                db.executescript(table)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            os.close(lock)
            raise
        self._lock, self._db = lock, db
        return db


def rows_of_page(
    db: sqlite3.Connection,
    select: str,
    values: Sequence[object],
    page: Page,
    after: int | None,
    *,
    place: str = "place",
) -> tuple[list[tuple[Any, ...]], bool]:
    """The rows of a page, and whether there are more behind it.

    `select` ends with a condition, and `values` are its own. `place` is the column that tells the order, `after` what
    the last row of the page before has there; None: it is the first page.
    """
    order, beyond = ("DESC", "<") if page.newest_first else ("ASC", ">")
    behind, values = ("", values) if after is None else (f" AND {place} {beyond} ?", [*values, after])
    rows = db.execute(f"{select}{behind} ORDER BY {place} {order} LIMIT ?", [*values, page.limit + 1]).fetchall()
    return rows[: page.limit], len(rows) > page.limit


def no_place(problem: OSError | sqlite3.Error) -> ApiError:
    """The disk does not take or give what is kept here."""
    why = problem.strerror if isinstance(problem, OSError) else str(problem)
    if isinstance(problem, OSError) and problem.errno and why:  # the system's words; ours may hold a path
        why = why.lower()
    return ApiError(
        503,
        f"The server's data folder cannot be used: {why or type(problem).__name__}.",
        type="server_error",
        code="files_unavailable",
    )
