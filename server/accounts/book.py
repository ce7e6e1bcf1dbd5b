"""Every account there is, and the usage book: tokens by day, key and model, kept on disk between runs.

The book is a small SQLite file in the user's data folder that several servers may write: each adds what it has counted.
Where it cannot be written the counts stay in memory, and the log says so once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from server.accounts.account import Account, KeyLimits, Reason, Spent, Watcher

_EVERY_S: Final = 10.0
_BUSY_S: Final = 5.0
_LOG: Final = logging.getLogger("onecard.usage")


class Accounts:
    """By name; one that was taken out of the configuration keeps its counts for its return."""

    def __init__(self, watchers: tuple[Watcher, ...], clock: Callable[[], float]) -> None:
        self._watchers = watchers
        self._clock = clock
        self._by_name: dict[str, Account] = {}

    def of(self, name: str, limits: KeyLimits = KeyLimits()) -> Account:  # noqa: B008 - frozen
        """The account of that name, with these limits from now on."""
        now, found = self._clock(), self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = Account(name, limits, now, self._watchers)
        elif found.limits != limits:
            found.change(limits, now)
        return found


@dataclass
class Used:
    """What one key has used of one model on one day."""

    jobs: int = 0
    """That have ended. A request is one or more; a refused one is none."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompts, those that were found computed."""
    completion_tokens: int = 0

    def add(self, spent: Spent) -> None:
        """One more job."""
        self.jobs += 1
        self.prompt_tokens += spent.prompt_tokens
        self.cached_tokens += spent.cached_tokens
        self.completion_tokens += spent.completion_tokens


@dataclass(frozen=True)
class UsageRow:
    """A line of the book."""

    day: str
    """In UTC, as `2026-11-29`."""
    key: str
    model: str
    used: Used


_COLUMNS: Final = tuple(one.name for one in fields(Used))
_CREATE: Final = (
    "CREATE TABLE IF NOT EXISTS used (day TEXT, key TEXT, model TEXT, "
    f"{', '.join(f'{name} INTEGER NOT NULL' for name in _COLUMNS)}, PRIMARY KEY (day, key, model)) WITHOUT ROWID"
)
_ADD: Final = (
    f"INSERT INTO used VALUES (?, ?, ?, {', '.join('?' * len(_COLUMNS))}) ON CONFLICT DO UPDATE SET "  # noqa: S608
    f"{', '.join(f'{name} = {name} + excluded.{name}' for name in _COLUMNS)}"
)
_SINCE: Final = f"SELECT day, key, model, {', '.join(_COLUMNS)} FROM used WHERE day >= ? ORDER BY 1, 2, 3"  # noqa: S608


class UsageBook:
    """Counts in memory, and adds them to the file every few seconds and at the end."""

    def __init__(self, path: Path, *, today: Callable[[], str] = lambda: day_of(datetime.now(UTC))) -> None:
        self._path = path
        self._today = today
        self._unwritten: dict[tuple[str, str, str], Used] = {}
        self._file = threading.Lock()
        self._complained = False
        self._writing: asyncio.Task[None] | None = None

    def request(self, key_name: str) -> None:
        """What counts is what it costs."""

    def refused(self, key_name: str, reason: Reason) -> None:
        """Costs nothing."""

    def spent(self, key_name: str, spent: Spent) -> None:
        """A job has ended."""
        self._unwritten.setdefault((self._today(), key_name, spent.model), Used()).add(spent)

    async def start(self) -> None:
        """Begin to write."""
        self._writing = asyncio.create_task(self._write_again_and_again())

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})
        await self._write()

    async def rows(self, days: int) -> list[UsageRow]:
        """Of today and the days before, `days` in all; in order of day, key and model."""
        await self._write()
        since = day_of(datetime.fromisoformat(self._today()) - timedelta(days=days - 1))
        found = {(r.day, r.key, r.model): r for r in await asyncio.to_thread(self._read, since)}
        for at, used in self._unwritten.items():  # since a moment ago, or all where the file cannot be written
            kept = found.get(at, UsageRow(*at, Used())).used
            both = {name: getattr(kept, name) + getattr(used, name) for name in _COLUMNS}
            found[at] = UsageRow(*at, Used(**both))
        return [found[at] for at in sorted(found) if at[0] >= since]

    async def _write_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._write()

    async def _write(self) -> None:
        """What could not be written is counted on."""
        if not self._unwritten:
            return
        counted, self._unwritten = self._unwritten, {}
        try:
            await asyncio.shield(asyncio.to_thread(self._add, counted))
        except (OSError, sqlite3.Error) as problem:
            if not self._complained:
                self._complained = True
                _LOG.warning("usage_unwritten file=%s reason=%s", self._path, type(problem).__name__)
            for at, used in counted.items():
                known = self._unwritten.setdefault(at, Used())
                for name, value in asdict(used).items():
                    setattr(known, name, getattr(known, name) + value)

    def _add(self, counted: Mapping[tuple[str, str, str], Used]) -> None:
        with self._file:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as book, book:
                book.execute(_CREATE)
                book.executemany(_ADD, [(*at, *asdict(used).values()) for at, used in counted.items()])

    def _read(self, since: str) -> list[UsageRow]:
        if not self._path.exists():
            return []
        try:
            with self._file, contextlib.closing(self._open()) as book:
                rows = book.execute(_SINCE, (since,)).fetchall()
        except sqlite3.Error as problem:  # no book, or one that another program has: what is in memory is told
            _LOG.warning("usage_unread file=%s reason=%r", self._path, str(problem))
            return []
        return [UsageRow(day, key, model, Used(*numbers)) for day, key, model, *numbers in rows]

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=_BUSY_S)


def day_of(moment: datetime) -> str:
    """`2026-11-29`."""
    return moment.strftime("%Y-%m-%d")
