"""Batches and their lines in the data folder's tables: what each is at, what was answered, what is left.

A line is answered in one transaction, once. Owns the states and what may follow which. Blocks on the disk: for threads.

validating -> failed | in_progress -> finalizing -> completed | expired; in_progress -> cancelling -> cancelled.
What the server itself fails to read becomes failed; what it fails to end stays as it is, and is tried again.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from server.batches.reading import Line, Problem, in_parts
from server.batches.records import COLUMNS, OPEN, AnsweredLine, Batch, BatchRecord, LeftLine, batch_of, record_of
from server.errors import ApiError, clip
from server.files.folder import rows_of_page

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Sequence

    from server.batches.records import State
    from server.files.folder import DataFolder, Page
    from server.files.store import StoredFile

TABLES: Final = """
CREATE TABLE IF NOT EXISTS batches (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    expires_at INTEGER NOT NULL, record BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS lines (
    batch INTEGER NOT NULL REFERENCES batches (place), n INTEGER NOT NULL, custom_id TEXT NOT NULL, model TEXT NOT NULL,
    beginning TEXT NOT NULL, body BLOB NOT NULL, tries INTEGER NOT NULL DEFAULT 0, status INTEGER, request_id TEXT,
    answer BLOB, PRIMARY KEY (batch, n)
);
CREATE INDEX IF NOT EXISTS left_lines ON lines (model, tries, beginning, batch, n) WHERE status IS NULL;
CREATE INDEX IF NOT EXISTS line_states ON lines (batch, status);
"""
KEPT_S: Final = 90 * 24 * 3600
"""A batch that has ended can be asked for so long behind the end of its window."""
_RUNNING: Final = "SELECT place FROM batches WHERE state = 'in_progress'"
_ENCODE: Final = msgspec.json.encode


class BatchStore:
    """Of one data folder."""

    def __init__(self, folder: DataFolder, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock

    # What clients do

    def create(self, record: BatchRecord, *, owner: str, window_s: int) -> Batch:
        """A new one, whose file is still to be read. Raises ApiError 503."""
        batch_id, ends = f"batch_{secrets.token_hex(12)}", record.created_at + window_s
        with self._folder.transaction() as db:
            cursor = db.execute(
                "INSERT INTO batches (id, owner, state, expires_at, record) VALUES (?, ?, 'validating', ?, ?)",
                (batch_id, owner, ends, _ENCODE(record)),
            )
            return Batch(cursor.lastrowid or 0, batch_id, owner, "validating", ends, record)

    def get(self, batch_id: str, owner: str | None) -> Batch:
        """One of this owner's, or of any (None). Raises ApiError 404."""
        with self._folder.transaction() as db:
            return self._get(db, batch_id, owner)

    def listed(self, owner: str | None, page: Page) -> tuple[list[Batch], bool]:
        """A page, the newest first, and whether there are more behind it. Raises ApiError 404."""
        with self._folder.transaction() as db:
            after = None if page.after is None else self._get(db, page.after, owner).place
            select = f"SELECT {COLUMNS} FROM batches WHERE (? IS NULL OR owner = ?)"  # noqa: S608
            rows, has_more = rows_of_page(db, select, (owner, owner), page, after)
        return [batch_of(row) for row in rows], has_more

    def cancel(self, batch_id: str, owner: str | None) -> Batch:
        """Begin no line more; idempotent. Raises ApiError 404, or 409 where it has ended otherwise."""
        with self._folder.transaction() as db:
            batch = self._get(db, batch_id, owner)
            if batch.state in ("cancelling", "cancelled"):
                return batch
            if batch.state not in ("validating", "in_progress"):
                told = f"The batch is {batch.state}, so it cannot be cancelled."
                raise ApiError(409, told, code="batch_not_cancellable", headers={"x-should-retry": "false"})
            return self._move(db, batch, "cancelling")

    def counts(self, batch: Batch) -> tuple[int, int, int]:
        """Of its lines: all, those that went well, and those that did not."""
        if batch.record.counts:
            n_all, n_well, n_badly = batch.record.counts
            return n_all, n_well, n_badly
        with self._folder.transaction() as db:
            return self._counts(db, batch.place)

    # What the runner does

    def open_batches(self) -> list[Batch]:
        """Those with something left to do, the oldest first."""
        with self._folder.transaction() as db:
            marks = ", ".join("?" * len(OPEN))
            rows = db.execute(
                f"SELECT {COLUMNS} FROM batches WHERE state IN ({marks}) ORDER BY place",  # noqa: S608
                OPEN,
            ).fetchall()
        return [batch_of(row) for row in rows]

    def fill(self, batch: Batch, read: Iterator[Line | Problem]) -> None:
        """Take its file in: its lines may run, or it has failed. Nothing where it was cancelled meanwhile.

        By parts, so that clients do not wait for a long file, which is never in memory as a whole. What a part of an
        earlier run has left is read again.
        """
        with self._folder.transaction() as db:
            self._forget_lines(db, batch)
        problems: list[Problem] = []
        n_lines = 0
        for part in in_parts(read):
            lines = [one for one in part if not isinstance(one, Problem)]
            problems += [one for one in part if isinstance(one, Problem)]
            n_lines += len(lines)
            with self._folder.transaction() as db:
                if self._get(db, batch.id, None).state != "validating":
                    self._forget_lines(db, batch)
                    return
                db.executemany(
                    "INSERT INTO lines (batch, n, custom_id, model, beginning, body) VALUES (?, ?, ?, ?, ?, ?)",
                    [(batch.place, one.n, one.custom_id, one.model, one.beginning, one.body) for one in lines],
                )
        if problems:
            self.fail(batch, problems, n_lines=n_lines)
            return
        with self._folder.transaction() as db:
            if self._get(db, batch.id, None).state == "validating":
                self._move(db, batch, "in_progress")

    def fail(self, batch: Batch, problems: Sequence[Problem], *, n_lines: int | None = None) -> None:
        """It cannot be run, or not be ended; its lines are gone. Nothing where it was cancelled before it was read.

        `n_lines`: of its file; None: those that are kept of it.
        """
        with self._folder.transaction() as db:
            now = self._get(db, batch.id, None)
            n_kept = self._counts(db, batch.place)[0]
            self._forget_lines(db, batch)
            if batch.state == "validating" and now.state != "validating":
                return
            now.record.errors = _told(problems)
            now.record.counts = [n_kept if n_lines is None else n_lines, 0, 0]
            self._move(db, now, "failed")

    def complain(self, place: int, problems: Sequence[Problem]) -> None:
        """These hold it up; nothing where it has ended."""
        with self._folder.transaction() as db:
            row = db.execute(f"SELECT {COLUMNS} FROM batches WHERE place = ?", (place,)).fetchone()  # noqa: S608
            now = None if row is None else batch_of(row)
            if now is not None and now.state in OPEN:
                now.record.errors = _told(problems)
                self._write(db, now, now.state)

    def sweep(self) -> int:
        """Forget batches that have ended and whose window is over for `KEPT_S`: how many."""
        marks = ", ".join("?" * len(OPEN))
        with self._folder.transaction() as db:
            return db.execute(
                f"DELETE FROM batches WHERE expires_at <= ? AND state NOT IN ({marks})",  # noqa: S608
                (int(self._clock()) - KEPT_S, *OPEN),
            ).rowcount

    def models_left(self) -> list[str]:
        """Models for which lines are left: those of the oldest batch first, then those with the most lines."""
        with self._folder.transaction() as db:
            rows = db.execute(
                "SELECT model FROM lines WHERE status IS NULL "  # noqa: S608
                f"AND batch IN ({_RUNNING}) GROUP BY model ORDER BY MIN(batch), COUNT(*) DESC"
            ).fetchall()
        return [model for (model,) in rows]

    def left(self, model: str, most: int, *, but: Sequence[tuple[int, int]]) -> list[LeftLine]:
        """The next lines for a model, those that begin alike together, and those that have failed last.

        Without some that run already.
        """
        running = set(but)
        with self._folder.transaction() as db:
            rows = db.execute(
                "SELECT batch, n, owner, record, model, body, tries FROM lines JOIN batches ON place = batch "
                "WHERE status IS NULL AND model = ? AND state = 'in_progress' "
                "ORDER BY tries, beginning, batch, n LIMIT ?",
                (model, most + len(running)),
            ).fetchall()
        found = [
            LeftLine(batch, n, owner, record_of(record).endpoint, name, body, tries)
            for batch, n, owner, record, name, body, tries in rows
            if (batch, n) not in running
        ]
        return found[:most]

    def answer(self, line: LeftLine, *, status: int, request_id: str, answer: bytes) -> bool:
        """Keep a line's answer; False where it had one, or its batch is not running any more."""
        with self._folder.transaction() as db:
            changed = db.execute(
                "UPDATE lines SET status = ?, request_id = ?, answer = ? WHERE batch = ? AND n = ? AND status IS NULL",
                (status, request_id, answer, line.batch, line.n),
            ).rowcount
        return changed == 1

    def tried(self, line: LeftLine) -> None:
        """A line failed for a reason that may pass."""
        with self._folder.transaction() as db:
            db.execute("UPDATE lines SET tries = tries + 1 WHERE batch = ? AND n = ?", (line.batch, line.n))

    def finalize(self, batch: Batch) -> Batch:
        """No line of it runs any more: its files are to be written. It may be cancelled since it was looked at."""
        with self._folder.transaction() as db:
            now = self._get(db, batch.id, None)
            return self._move(db, now, "finalizing") if now.state == "in_progress" else now

    def answered(self, batch: Batch, *, well: bool) -> Iterator[AnsweredLine]:
        """Its lines in the order of its file: those that went well, or the others, those never asked among them."""
        n = 0
        asked = "status BETWEEN 200 AND 299" if well else "(status IS NULL OR status NOT BETWEEN 200 AND 299)"
        while True:
            with self._folder.transaction() as db:
                rows = db.execute(
                    "SELECT n, custom_id, COALESCE(status, 0), COALESCE(request_id, ''), COALESCE(answer, '') "  # noqa: S608
                    f"FROM lines WHERE batch = ? AND n > ? AND {asked} ORDER BY n LIMIT 200",
                    (batch.place, n),
                ).fetchall()
            if not rows:
                return
            yield from (AnsweredLine(*row) for row in rows)
            n = rows[-1][0]

    def end(
        self,
        batch: Batch,
        state: State,
        *,
        output: StoredFile | None,
        errors: StoredFile | None,
        usage: dict[str, int],
        enter: Callable[[sqlite3.Connection, StoredFile], None],
    ) -> Batch:
        """It has ended: its files are files, and its lines are gone. What held it up is told no more."""
        record = batch.record
        record.errors = []
        with self._folder.transaction() as db:
            for file in (output, errors):
                if file is not None:
                    enter(db, file)
            record.output_file_id = None if output is None else output.id
            record.error_file_id = None if errors is None else errors.id
            record.counts, record.usage = list(self._counts(db, batch.place)), usage
            self._forget_lines(db, batch)
            return self._move(db, batch, state)

    # How

    def _get(self, db: sqlite3.Connection, batch_id: str, owner: str | None) -> Batch:
        row = db.execute(f"SELECT {COLUMNS} FROM batches WHERE id = ?", (batch_id,)).fetchone()  # noqa: S608
        if row is None or owner not in (None, row[2]):
            raise ApiError(404, f"No batch found with id '{clip(batch_id)}'.", param="id", code="batch_not_found")
        return batch_of(row)

    def _move(self, db: sqlite3.Connection, batch: Batch, state: State) -> Batch:
        batch.record.times[f"{state}_at"] = int(self._clock())
        return self._write(db, batch, state)

    @staticmethod
    def _write(db: sqlite3.Connection, batch: Batch, state: State) -> Batch:
        db.execute(
            "UPDATE batches SET state = ?, record = ? WHERE place = ?", (state, _ENCODE(batch.record), batch.place)
        )
        return Batch(batch.place, batch.id, batch.owner, state, batch.expires_at, batch.record)

    @staticmethod
    def _forget_lines(db: sqlite3.Connection, batch: Batch) -> None:
        db.execute("DELETE FROM lines WHERE batch = ?", (batch.place,))

    @staticmethod
    def _counts(db: sqlite3.Connection, place: int) -> tuple[int, int, int]:
        n_all, n_well, n_badly = db.execute(
            "SELECT COUNT(*), COUNT(CASE WHEN status BETWEEN 200 AND 299 THEN 1 END), "
            "COUNT(CASE WHEN status NOT BETWEEN 200 AND 299 THEN 1 END) FROM lines WHERE batch = ?",
            (place,),
        ).fetchone()
        return n_all, n_well, n_badly


def _told(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [{"code": one.code, "message": one.message, "line": one.line, "param": one.param} for one in problems]
