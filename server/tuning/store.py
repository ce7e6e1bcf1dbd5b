"""Fine-tuning jobs in the data folder's tables: what each is at, its events, its losses and its checkpoints.

Blocks on the disk: for threads. What may follow which state is `server.tuning.job`'s to say.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from server.errors import ApiError, clip
from server.files.folder import rows_of_page
from server.settings.config import TUNED
from server.tuning.job import FOLLOWS, OPEN, Job, JobRecord, State, tuned_model

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backends.messages.training import TrainEvaluated, TrainStep
    from server.files.folder import DataFolder, Page
    from server.files.store import StoredFile

TABLES: Final = """
CREATE TABLE IF NOT EXISTS tuning_jobs (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, state TEXT NOT NULL,
    record BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tuning_events (
    place INTEGER PRIMARY KEY AUTOINCREMENT, job INTEGER NOT NULL REFERENCES tuning_jobs (place), id TEXT NOT NULL,
    created_at INTEGER NOT NULL, level TEXT NOT NULL, type TEXT NOT NULL, message TEXT NOT NULL, data BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_jobs ON tuning_events (job, place);
CREATE TABLE IF NOT EXISTS tuning_steps (
    job INTEGER NOT NULL REFERENCES tuning_jobs (place), step INTEGER NOT NULL, loss REAL,
    learning_rate REAL NOT NULL, tokens INTEGER NOT NULL, PRIMARY KEY (job, step)
);
CREATE TABLE IF NOT EXISTS tuning_evaluations (
    job INTEGER NOT NULL REFERENCES tuning_jobs (place), step INTEGER NOT NULL, epoch INTEGER NOT NULL,
    loss REAL, perplexity REAL, accuracy REAL, PRIMARY KEY (job, step)
);
CREATE TABLE IF NOT EXISTS tuning_checkpoints (
    job INTEGER NOT NULL REFERENCES tuning_jobs (place), step INTEGER NOT NULL, id TEXT NOT NULL,
    created_at INTEGER NOT NULL, PRIMARY KEY (job, step)
);
"""
Level = Literal["info", "warn", "error"]
Asked = Literal["cancelled", "paused", "queued"]
"""States that clients put a job into."""
_COLUMNS: Final = "place, id, owner, state, record"
_LOG: Final = logging.getLogger("onecard.training")
_ENCODE: Final = msgspec.json.encode
_DECODE: Final = msgspec.json.Decoder(JobRecord).decode


class JobEvent(NamedTuple):
    """Something that has happened to a job."""

    id: str
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any]


class StepRow(NamedTuple):
    """One step of the training, and what the evaluation said after it."""

    step: int
    loss: float | None
    """None where it was no number."""
    learning_rate: float
    tokens: int
    valid_loss: float | None
    perplexity: float | None
    valid_accuracy: float | None


class Checkpoint(NamedTuple):
    """One that was saved, with what was known of the model then."""

    id: str
    created_at: int
    step: int
    loss: float | None
    valid_loss: float | None
    valid_accuracy: float | None


class TuningStore:
    """Of one data folder."""

    def __init__(self, folder: DataFolder, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._clock = clock

    def folder(self, job_id: str) -> Path:
        """Where a job keeps its data, its checkpoints and its result."""
        return self._folder.contents.parent / "fine_tuning" / job_id

    # Jobs

    def create(self, record: JobRecord, *, owner: str) -> Job:
        """A new one, whose files are still to be read. Raises ApiError 503, and 404 where its model was deleted."""
        job_id = f"ftjob-{secrets.token_hex(12)}"
        with self._folder.transaction() as db:
            if record.model.startswith(TUNED):
                made = (job.record for job in self._of_states(db, ("succeeded",)))
                if any(one.fine_tuned_model == record.model and one.result_folder is None for one in made):
                    raise _deleted(record.model)
            cursor = db.execute(
                "INSERT INTO tuning_jobs (id, owner, state, record) VALUES (?, ?, 'validating_files', ?)",
                (job_id, owner, _ENCODE(record)),
            )
            return Job(cursor.lastrowid or 0, job_id, owner, "validating_files", record)

    def get(self, job_id: str, owner: str | None) -> Job:
        """One of this owner's, or of any (None). Raises ApiError 404."""
        with self._folder.transaction() as db:
            return self._get(db, job_id, owner)

    def listed(self, owner: str | None, page: Page) -> tuple[list[Job], bool]:
        """A page, the newest first, and whether there are more behind it. Raises ApiError 404."""
        with self._folder.transaction() as db:
            after = None if page.after is None else self._get(db, page.after, owner).place
            select = f"SELECT {_COLUMNS} FROM tuning_jobs WHERE (? IS NULL OR owner = ?)"  # noqa: S608
            rows, has_more = rows_of_page(db, select, (owner, owner), page, after)
        return _jobs(rows), has_more

    def open_jobs(self) -> list[Job]:
        """Those that have not ended, the oldest first."""
        return self._in_states(OPEN)

    def succeeded(self) -> list[Job]:
        """Those that have made a model, the oldest first."""
        return self._in_states(("succeeded",))

    def leftovers(self) -> list[Path]:
        """Folders of jobs that have ended and made nothing that is served: their server was killed meanwhile."""
        ended = self._in_states(("failed", "cancelled", "succeeded"))
        folders = (self.folder(job.id) for job in ended if job.record.result_folder is None)
        return [folder for folder in folders if folder.is_dir()]

    def change(
        self,
        job_id: str,
        state: State | None = None,
        edit: Callable[[JobRecord], None] | None = None,
        *,
        owner: str | None = None,
        files: tuple[Sequence[StoredFile], Callable[[sqlite3.Connection, StoredFile], None]] | None = None,
    ) -> Job:
        """Another state, another record, or both at once; `files` that were written become files with it.

        Raises ApiError 404, and 409 where the state may not follow.
        """
        with self._folder.transaction() as db:
            job = self._get(db, job_id, owner)
            if state is not None and state not in FOLLOWS[job.state]:
                raise may_not_follow(job, state)
            if edit is not None:
                edit(job.record)
            if files is not None:
                for file in files[0]:
                    files[1](db, file)
            return self._written(db, job, state or job.state)

    def move(self, job_id: str, state: Asked, finished_at: int) -> tuple[Job, bool]:
        """Another state, as a client asks for it, and whether it is another: who asks twice, or at once with others,
        finds the job there.

        Raises ApiError 404, and 409 where the state may not follow. `queued` is resumed, and follows `paused` alone.
        """
        with self._folder.transaction() as db:
            job = self._get(db, job_id, None)
            if job.state == state or (state == "queued" and job.state == "running"):
                return job, False
            if state not in FOLLOWS[job.state] or (state == "queued" and job.state != "paused"):
                raise may_not_follow(job, state)
            job.record.finished_at = finished_at if state == "cancelled" else None
            return self._written(db, job, state), True

    def delete_result(self, job: Job, name: str) -> None:
        """What a job has made is to be no more. Looked at and written in one, so that no job begins with it meanwhile.

        Raises ApiError 404 where it is gone, and 409 where it is the base of an adapter, or of a job that has not ended
        and whose result takes files of it.
        """
        with self._folder.transaction() as db:
            kept = self._get(db, job.id, None)
            if kept.record.result_folder is None:
                raise _deleted(name)
            if (why := self._still_needs(db, name)) is not None:
                raise ApiError(409, f"The model '{clip(name)}' is {why}", param="model", code="model_in_use")
            kept.record.result_folder = None
            self._written(db, kept, kept.state)

    # Events

    def tell(
        self, job: Job, message: str, *, level: Level = "info", metrics: bool = False, **data: float | str | None
    ) -> None:
        """Something has happened to a job."""
        values = (
            *(job.place, f"ftevent-{secrets.token_hex(12)}", int(self._clock()), level),
            *("metrics" if metrics else "message", message, _ENCODE(data)),
        )
        with self._folder.transaction() as db:
            db.execute(
                "INSERT INTO tuning_events (job, id, created_at, level, type, message, data) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                values,
            )

    def events(self, job: Job, page: Page) -> tuple[list[JobEvent], bool]:
        """A page, the newest first, and whether there are more behind it. Raises ApiError 404."""
        with self._folder.transaction() as db:
            select = "SELECT id, created_at, level, type, message, data FROM tuning_events WHERE job = ?"
            where = "SELECT place FROM tuning_events WHERE id = ? AND job = ?"
            after = self._place(db, where, job, page.after, called="event")
            rows, has_more = rows_of_page(db, select, (job.place,), page, after)
        return [_event(row) for row in rows], has_more

    # What the training says

    def begin_at(self, job: Job, step: int) -> None:
        """The training goes on behind a step: what an earlier process said of later ones holds no more."""
        with self._folder.transaction() as db:
            for table in ("tuning_steps", "tuning_evaluations"):
                db.execute(f"DELETE FROM {table} WHERE job = ? AND step > ?", (job.place, step))  # noqa: S608

    def add_steps(self, job: Job, steps: Sequence[TrainStep]) -> None:
        """Steps that were done."""
        rows = [(job.place, one.step, one.loss, one.learning_rate, one.tokens) for one in steps]
        with self._folder.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO tuning_steps VALUES (?, ?, ?, ?, ?)", rows)

    def add_evaluation(self, job: Job, said: TrainEvaluated) -> None:
        """What the evaluation's examples say after a step."""
        row = (job.place, said.step, said.epoch, said.loss, said.perplexity, said.token_accuracy)
        with self._folder.transaction() as db:
            db.execute("INSERT OR REPLACE INTO tuning_evaluations VALUES (?, ?, ?, ?, ?, ?)", row)

    def add_checkpoint(self, job: Job, step: int) -> None:
        """One lies on the disk."""
        row = (job.place, step, f"ftckpt_{secrets.token_hex(12)}", int(self._clock()))
        with self._folder.transaction() as db:
            db.execute("INSERT OR IGNORE INTO tuning_checkpoints VALUES (?, ?, ?, ?)", row)

    def curve(self, job: Job) -> list[StepRow]:
        """Every step so far."""
        with self._folder.transaction() as db:
            rows = db.execute(
                "SELECT s.step, s.loss, s.learning_rate, s.tokens, e.loss, e.perplexity, e.accuracy "
                "FROM tuning_steps s LEFT JOIN tuning_evaluations e ON e.job = s.job AND e.step = s.step "
                "WHERE s.job = ? ORDER BY s.step",
                (job.place,),
            ).fetchall()
        return [StepRow(*row) for row in rows]

    def checkpoints(self, job: Job, page: Page) -> tuple[list[Checkpoint], bool]:
        """A page, the newest first, and whether there are more behind it. Raises ApiError 404."""
        with self._folder.transaction() as db:
            select = (
                "SELECT c.id, c.created_at, c.step, s.loss, e.loss, e.accuracy FROM tuning_checkpoints c "
                "LEFT JOIN tuning_steps s ON s.job = c.job AND s.step = c.step "
                "LEFT JOIN tuning_evaluations e ON e.job = c.job AND e.step = c.step WHERE c.job = ?"
            )
            where = "SELECT step FROM tuning_checkpoints WHERE id = ? AND job = ?"
            after = self._place(db, where, job, page.after, called="checkpoint")
            rows, has_more = rows_of_page(db, select, (job.place,), page, after, place="c.step")
        return [Checkpoint(*row) for row in rows], has_more

    # How

    def _still_needs(self, db: sqlite3.Connection, name: str) -> str | None:
        """Who needs a result, as the end of a sentence; None: no one."""
        learner = next((one for one in self._of_states(db, OPEN) if one.record.model == name), None)
        if learner is not None:
            return f"what {learner.id} teaches. hint: cancel that job, or let it end"
        made = map(tuned_model, self._of_states(db, ("succeeded",)))
        adapter = next((one for one in made if one is not None and one.base == name and not one.whole), None)
        return None if adapter is None else f"the base of '{adapter.name}', an adapter. hint: delete that one first"

    @staticmethod
    def _written(db: sqlite3.Connection, job: Job, state: State) -> Job:
        """Its record as it is now, and its state."""
        values = (state, _ENCODE(job.record), job.place)
        db.execute("UPDATE tuning_jobs SET state = ?, record = ? WHERE place = ?", values)
        return Job(job.place, job.id, job.owner, state, job.record)

    @staticmethod
    def _place(db: sqlite3.Connection, select: str, job: Job, after: str | None, *, called: str) -> int | None:
        """Where in a list of a job's this id stands; None for none. Raises ApiError 404."""
        if after is None:
            return None
        row = db.execute(select, (after, job.place)).fetchone()
        if row is None:
            raise ApiError(404, f"No {called} has the id '{clip(after)}'.", param="after", code="not_found")
        return int(row[0])

    def _in_states(self, states: Sequence[State]) -> list[Job]:
        with self._folder.transaction() as db:
            return self._of_states(db, states)

    @staticmethod
    def _of_states(db: sqlite3.Connection, states: Sequence[State]) -> list[Job]:
        marks = ", ".join("?" * len(states))
        select = f"SELECT {_COLUMNS} FROM tuning_jobs WHERE state IN ({marks}) ORDER BY place"  # noqa: S608
        return _jobs(db.execute(select, states).fetchall())

    def _get(self, db: sqlite3.Connection, job_id: str, owner: str | None) -> Job:
        row = db.execute(f"SELECT {_COLUMNS} FROM tuning_jobs WHERE id = ?", (job_id,)).fetchone()  # noqa: S608
        if row is None or owner not in (None, row[2]):
            told = f"Could not find fine tune: {clip(job_id)}"
            raise ApiError(404, told, param="fine_tuning_job_id", code="fine_tune_not_found")
        try:
            return _job(row)
        except msgspec.DecodeError:
            told = f"What is kept of the job {clip(job_id)} cannot be read: another onecard may have written it."
            raise ApiError(503, told, type="server_error", code="files_unavailable") from None


def may_not_follow(job: Job, state: State) -> ApiError:
    """What was asked of a job is not possible in its state."""
    verbs: dict[State, str] = {"cancelled": "cancelled", "paused": "paused", "queued": "resumed"}
    told = f"The job is {job.state}, so it cannot be {verbs.get(state, state)}."
    return ApiError(409, told, code="fine_tune_state", headers={"x-should-retry": "false"})


def _deleted(model: str) -> ApiError:
    return ApiError(404, f"The model '{clip(model)}' was deleted.", param="model", code="model_not_found")


def _job(row: tuple[Any, ...]) -> Job:
    place, job_id, owner, state, record = row
    return Job(place, job_id, owner, state, _DECODE(record))


def _jobs(rows: Sequence[tuple[Any, ...]]) -> list[Job]:
    """Without those whose record cannot be read, which hold up no other."""
    found = []
    for row in rows:
        try:
            found.append(_job(row))
        except msgspec.DecodeError as problem:
            _LOG.warning("training_job_unread id=%s reason=%r", row[1], str(problem))
    return found


def _event(row: tuple[Any, ...]) -> JobEvent:
    event_id, created_at, level, kind, message, data = row
    return JobEvent(event_id, created_at, level, kind, message, msgspec.json.decode(data))
