"""What is kept of batches and their lines, as data; `server.batches.store` keeps it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

State = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
OPEN: Final = ("validating", "in_progress", "finalizing", "cancelling")
"""States in which there is something left to do."""
COLUMNS: Final = "place, id, owner, state, expires_at, record"
"""Of the table of batches: what `batch_of` reads."""


class BatchRecord(msgspec.Struct, kw_only=True):
    """What is kept of a batch beside its state, its owner and its lines. Times are seconds since 1970."""

    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    metadata: dict[str, str] | None = None
    output_lifetime_s: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = []
    times: dict[str, int] = {}
    """When it came into which state, by the field that tells it: `in_progress_at`."""
    counts: list[int] = []
    """Of its lines, once it has ended: all, those that went well, and those that did not."""
    usage: dict[str, int] = {}


@dataclass(frozen=True)
class Batch:
    """One batch as it is now."""

    place: int
    id: str
    owner: str
    state: State
    expires_at: int
    record: BatchRecord


@dataclass(frozen=True)
class LeftLine:
    """A line that is not answered."""

    batch: int
    n: int
    owner: str
    endpoint: str
    model: str
    body: bytes
    tries: int


@dataclass(frozen=True)
class AnsweredLine:
    """A line with its answer; `status` is 0 where it was never asked."""

    n: int
    custom_id: str
    status: int
    request_id: str
    answer: bytes


record_of: Final = msgspec.json.Decoder(BatchRecord).decode
"""The record of the bytes that are kept of it."""


def batch_of(row: tuple[Any, ...]) -> Batch:
    """A row of the table, as `COLUMNS` asks for it."""
    place, batch_id, owner, state, expires_at, record = row
    return Batch(place, batch_id, owner, state, expires_at, record_of(record))
