"""From a job that was asked for to one that can run: its files read and kept, its recipe made, its memory estimated.

Blocks on the disk: for threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.training.examples import check
from server.errors import ApiError
from server.files.folder import no_place
from server.tuning.disk import short_of
from server.tuning.job import JobError
from server.tuning.recipe import Machine, Material, NoFitError, recipe_of, reserved

if TYPE_CHECKING:
    from backends.messages.training import Recipe, TrainForm
    from backends.training.examples import Checked
    from server.files.store import FileStore
    from server.tuning.estimate import DiskBytes, Estimate
    from server.tuning.job import Job
    from server.tuning.store import TuningStore

_GONE: Final = 404
_PAUSE_S: Final = 1e-4
"""In a check of seconds. Without pauses the event loop waits 5 ms for the interpreter's lock, and dozens of times for
one request.
"""


@dataclass(frozen=True)
class Base:
    """The model that a job teaches, as far as a job has to know it."""

    path: Path
    n_ctx_train: int
    estimate: Estimate
    disk_bytes: DiskBytes


class UnfitError(Exception):
    """A job that cannot run as it was asked for."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass(frozen=True)
class Prepared:
    """What a job does from now on."""

    recipe: Recipe
    n_examples: int
    device_bytes: int
    host_bytes: int
    disk_bytes: int


def prepare(job: Job, base: Base, machine: Machine, *, files: FileStore, store: TuningStore) -> Prepared:
    """Read a job's files, and keep them whatever becomes of the uploads. Raises UnfitError, and ApiError 503."""
    folder, record = store.folder(job.id), job.record
    training = _kept(record.training_file, folder / "training", files, "training_file")
    checked = _checked(training, None, "training_file")
    validation = None
    if record.validation_file is not None:
        validation = _kept(record.validation_file, folder / "validation", files, "validation_file")
        _checked(validation, checked.form, "validation_file")
    material = Material(
        *(base.path, folder, training, validation, checked.form, checked.examples, checked.longest_bytes),
        checked.text_bytes,
        base.n_ctx_train,
    )
    try:
        recipe, footprint = recipe_of(record.wanted, record.seed, material, machine, base.estimate)
    except NoFitError as problem:
        raise UnfitError(JobError("cannot_fit", str(problem))) from None
    amount, disk_bytes = reserved(footprint), base.disk_bytes(recipe)
    if (short := short_of(folder, disk_bytes)) is not None:
        raise UnfitError(JobError("disk_full", f"The training has no room: {short}"))
    return Prepared(recipe, checked.examples, amount.device, amount.host, disk_bytes)


def _checked(path: Path, form: TrainForm | None, param: str) -> Checked:
    checked = check(path, form, pause=partial(time.sleep, _PAUSE_S))
    if checked.n_faults:
        raise UnfitError(JobError(f"invalid_{param}", f"The {param} cannot be used. {checked.told}", param))
    return checked


def _kept(file_id: str, target: Path, files: FileStore, param: str) -> Path:
    """A second name for an upload's bytes, which stay when it is deleted."""
    try:
        source = files.content(files.get(file_id, None))
    except ApiError as problem:
        if problem.status != _GONE:
            raise
        raise UnfitError(JobError("file_not_found", problem.message, param)) from None
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            target.unlink()
        try:
            os.link(source, target)
        except OSError:  # a file system without second names
            shutil.copyfile(source, target)
    except OSError as problem:
        raise no_place(problem) from None
    return target
