"""The end of a batch: its files are written, and become files together with its state. Blocks on the disk.

Where the server itself fails at that, the answers stay where they are, and it is tried again: later and later, and at
the next start at once.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import msgspec

from server.batches.answers import output_lines, usage_of
from server.batches.reading import Problem
from server.batches.store import KEPT_S
from server.errors import ApiError, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from server.batches.records import Batch, State
    from server.batches.store import BatchStore
    from server.files.store import FileStore, StoredFile

AGAIN_S: Final = (10.0, 60.0, 600.0)
"""Until the server tries once more to end a batch at which it has failed, by how often it has."""
_LOG: Final = logging.getLogger("onecard.batches")


class Ender:
    """Of one server."""

    def __init__(self, store: BatchStore, files: FileStore, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._store, self._files, self._clock = store, files, clock
        self._failed: dict[int, tuple[int, float]] = {}
        """Batches at which the server has failed: how often, and when it tries again, on the monotonic clock."""

    def end_what_is_done(self, running: Collection[int]) -> None:
        """Batches whose time is over, that were cancelled, or that have no line left get their files.

        `running`: places of those of which a line runs. Raises ApiError 503, OSError and MemoryError: the machine is
        short of something, and nothing is lost.
        """
        for batch in self._store.open_batches():
            if batch.state == "validating" or batch.place in running or self._waits_s(batch):
                continue
            if (state := self._state_of(batch)) is not None:
                self._end(batch, state)

    def next_look_s(self) -> float | None:
        """When there is something to be done for open batches that have no line left; None where there are none."""
        return min((self._waits_s(batch) for batch in self._store.open_batches()), default=None)

    def _waits_s(self, batch: Batch) -> float:
        return max(0.0, self._failed.get(batch.place, (0, 0.0))[1] - time.monotonic())

    def _state_of(self, batch: Batch) -> State | None:
        """What it becomes; None while it goes on."""
        if batch.state == "cancelling":
            return "cancelled"
        n_all, n_well, n_badly = self._store.counts(batch)
        if n_all == n_well + n_badly:
            return "completed"
        return "expired" if batch.state == "finalizing" or batch.expires_at <= self._clock() else None

    def _end(self, batch: Batch, state: State) -> None:
        try:
            end_batch(self._store, self._files, batch, state)
            self._failed.pop(batch.place, None)
        except (ApiError, OSError, MemoryError):
            raise
        except Exception as problem:  # a fault of ours is this batch's alone, and costs no answer
            self._put_off(batch, problem)

    def _put_off(self, batch: Batch, problem: Exception) -> None:
        n_times = self._failed.get(batch.place, (0, 0.0))[0] + 1
        again_s = AGAIN_S[min(n_times, len(AGAIN_S)) - 1]
        error, at = type(problem).__name__, place_of(problem)
        _LOG.error("batch_end_failed id=%s error=%s at=%s again_s=%g", batch.id, error, at, again_s)
        told = f"The server itself failed as it wrote this batch's files ({error})."
        if self._clock() >= batch.expires_at + KEPT_S:
            self._store.fail(batch, [Problem("internal_error", told)])
            return
        self._failed[batch.place] = (n_times, time.monotonic() + again_s)
        told += " Its answers are kept, and it tries again. hint: its log has more; a new version may mend it"
        self._store.complain(batch.place, [Problem("internal_error", told)])


def end_batch(store: BatchStore, files: FileStore, batch: Batch, state: State) -> None:
    """Bring it to this state, or to `cancelled` where a client was quicker. Raises ApiError 503: it is as before."""
    lifetime_s = batch.record.output_lifetime_s
    batch = store.finalize(batch)
    state = "cancelled" if batch.state == "cancelling" else state
    made: dict[bool, StoredFile | None] = {}
    try:
        for well in (True, False):
            made[well] = files.write(
                output_lines(store.answered(batch, well=well), batch.id, state),
                owner=batch.owner,
                name=f"{batch.id}_{'output' if well else 'error'}.jsonl",
                purpose="batch_output",
                lifetime_s=lifetime_s,
            )
        usage = _usage(store, batch)
        ended = store.end(batch, state, output=made[True], errors=made[False], usage=usage, enter=files.enter)
    except BaseException:  # it is tried again
        files.discard(file for file in made.values() if file is not None)
        raise
    n_all, n_well, n_badly = store.counts(ended)
    _LOG.info("batch_ended id=%s state=%s lines=%d ok=%d failed=%d", batch.id, state, n_all, n_well, n_badly)


def _usage(store: BatchStore, batch: Batch) -> dict[str, int]:
    """Tokens of its answers; none are told where one cannot be read, which is no reason to lose the others."""
    try:
        return usage_of(line.answer for line in store.answered(batch, well=True))
    except msgspec.MsgspecError as problem:
        _LOG.error("batch_usage_unknown id=%s error=%s", batch.id, type(problem).__name__)
        return {}
