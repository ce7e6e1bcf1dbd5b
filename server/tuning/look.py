"""What jobs have made, looked up in the data folder by a command, whether or not a server has that folder."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

import msgspec

from server.tuning.job import Job, JobRecord, tuned_model

if TYPE_CHECKING:
    from server.tuning.job import TunedModel

_DECODE: Final = msgspec.json.Decoder(JobRecord).decode
_SUCCEEDED: Final = "SELECT place, id, owner, record FROM tuning_jobs WHERE state = 'succeeded' ORDER BY place"


class Made(NamedTuple):
    """One model that is still there."""

    model: TunedModel
    base: Path
    """The folder that was taught."""


def made(tables: Path) -> dict[str, Made]:
    """By name, the oldest first. `tables` is the data folder's SQLite file, which is read and not written.

    Raises sqlite3.Error, and msgspec.ValidationError for a newer onecard's file; blocks on the disk.
    """
    if not tables.exists():
        return {}
    with closing(sqlite3.connect(f"file:{quote(str(tables))}?mode=ro", uri=True)) as db:
        rows = db.execute(_SUCCEEDED).fetchall()
    found: dict[str, Made] = {}
    for place, job_id, owner, record in rows:
        job = Job(place, job_id, owner, "succeeded", _DECODE(record))
        model = tuned_model(job)
        if model is not None and job.record.recipe is not None:
            found[model.name] = Made(model, Path(job.record.recipe.base))
    return found
