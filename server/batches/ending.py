"""The end of a batch: its files are written, and become files together with its state. Blocks on the disk."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from server.batches.answers import output_lines, usage_of

if TYPE_CHECKING:
    from server.batches.store import Batch, BatchStore, State
    from server.files.store import FileStore, StoredFile

_LOG: Final = logging.getLogger("onecard.batches")


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
    except BaseException:  # it is tried again: on a full disk, every few seconds
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
