"""What a job has made: the files of its figures, and its model among those that are served, until it is removed.

Blocks on the disk where it says so.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from server.tuning.job import TunedModel, tuned_model
from server.tuning.picture import as_svg

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from backends.messages.training import TrainFinished
    from server.files.store import FileStore, StoredFile
    from server.tuning.job import Job, JobRecord
    from server.tuning.store import StepRow, TuningStore

RESULTS: Final = "fine-tune-results"
_COLUMNS: Final = "step,train_loss,learning_rate,trained_tokens,valid_loss,valid_perplexity,valid_mean_token_accuracy"
_LOG: Final = logging.getLogger("onecard.training")


class Results:
    """`serve` and `stop_serving` change the models that are served."""

    def __init__(
        self,
        store: TuningStore,
        files: FileStore,
        serve: Callable[[TunedModel], Awaitable[None]],
        stop_serving: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store, self._files = store, files
        self._serve, self._stop_serving = serve, stop_serving

    def keep(self, job: Job, finished: TrainFinished, now: int) -> Job:
        """The job has succeeded; its figures become files. Blocks. Raises ApiError 503."""
        name = job.model_name
        rows = self._store.curve(job)
        made = self._write(job, _csv(rows), "step_metrics.csv")
        try:
            made += self._write(job, [as_svg(name, rows).encode()], "report.svg")

            def edit(record: JobRecord) -> None:
                record.finished_at, record.trained_tokens = now, finished.trained_tokens
                record.fine_tuned_model, record.result_folder = name, finished.folder
                record.result_files = [file.id for file in made]

            ended = self._store.change(job.id, "succeeded", edit, files=(made, self._files.enter))
        except BaseException:
            self._files.discard(made)
            raise
        shutil.rmtree(self._store.folder(job.id) / "checkpoints", ignore_errors=True)
        return ended

    async def serve(self, job: Job) -> None:
        """Let clients ask for what a job has made, where it is still there."""
        model = tuned_model(job)
        if model is None:
            return
        if not await asyncio.to_thread(Path(model.path).is_dir):
            _LOG.warning("tuned_model_lost name=%s folder=%s", model.name, model.path)
            return
        await self._serve(model)

    async def delete(self, job: Job, name: str) -> None:
        """Its model is to be no more, here and on the disk. Raises ApiError 404, 409 and 503."""
        await asyncio.to_thread(self._store.delete_result, job, name)
        await self._stop_serving(name)
        await asyncio.to_thread(self._store.tell, job, "The model was deleted")
        await asyncio.to_thread(shutil.rmtree, self._store.folder(job.id), ignore_errors=True)

    def find(self, name: str) -> Job | None:
        """The job that has made a model. Blocks."""
        for job in self._store.succeeded():
            model = tuned_model(job)
            if model is not None and model.name == name:
                return job
        return None

    def _write(self, job: Job, lines: Iterable[bytes], name: str) -> list[StoredFile]:
        file = self._files.write(lines, owner=job.owner, name=f"{job.id}_{name}", purpose=RESULTS, lifetime_s=None)
        return [] if file is None else [file]


def _csv(rows: Sequence[StepRow]) -> Iterator[bytes]:
    yield f"{_COLUMNS}\n".encode()
    for row in rows:
        yield (",".join(map(_figure, row)) + "\n").encode()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"
