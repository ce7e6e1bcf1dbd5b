"""The course of a job whose model and data are there: steps, evaluations, checkpoints, and the result at the end.

What comes next follows from the recipe, the data and the number of steps that are behind it, so a job that was killed
goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import torch

from backends.machine import kernel
from backends.messages.training import (
    CheckpointSaved,
    TrainEvaluated,
    TrainFinished,
    TrainStarted,
    TrainStep,
)
from backends.pytorch.measure import mapped_bytes
from backends.training import result
from backends.training.checkpoints import State
from backends.training.errors import TrainError
from backends.training.packed import check_apart
from backends.training.rows import order, units
from backends.training.schedule import rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages.training import MicroBatchHalved, Recipe, TrainReport
    from backends.training.base import Base
    from backends.training.checkpoints import Checkpoint, Checkpoints
    from backends.training.data import Data
    from backends.training.learner import Learner
    from backends.training.rows import Rows, Unit

_REMEMBERED: Final = 0.9
"""Of the mean duration of steps, at each step."""
_DECIDES: Final = (
    "method", "quantization", "rank", "alpha", "targets", "n_epochs", "effective_batch", "learning_rate",
    "warmup_share", "weight_decay", "max_gradient_norm", "max_length", "packing", "seed",
)  # fmt: skip
"""Fields of a recipe that decide what a step learns."""


class Left(Exception):  # noqa: N818 - it is no error
    """The room was wanted; everything up to `step` is in a checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class Course:
    """See the module's text."""

    def __init__(
        self,
        recipe: Recipe,
        base: Base,
        learner: Learner,
        data: Data,
        checkpoints: Checkpoints,
        tell: Callable[[TrainReport], None],
        leaving: Callable[[], bool],
    ) -> None:
        self._recipe, self._base, self._learner, self._data = recipe, base, learner, data
        self._checkpoints, self._tell, self._leaving = checkpoints, tell, leaving
        self._lines = units(data.learn, packing=recipe.packing, max_length=recipe.max_length)
        self._held = units(data.evaluate, packing=recipe.packing, max_length=recipe.max_length)
        self._lengths = _widths(data.learn, self._lines)
        self._per_epoch = math.ceil(len(self._lines) / recipe.effective_batch)
        self._steps = self._per_epoch * recipe.n_epochs
        self._state = State(identity=_identity(recipe, base, data))
        self._batches: list[list[int]] = []
        self._batches_of = 0
        self._saved_step = 0
        self._saved_at = time.monotonic()
        self._step_s = 0.0

    def run(self, newest: Checkpoint | None) -> TrainFinished:
        """From a checkpoint, or from the beginning, to the end. Raises Left or TrainError."""
        if self._recipe.packing:
            check_apart(self._base)
        if newest is not None:
            self._resume(newest)
        self._tell(self._started())
        kernel.forget_peak()
        while True:
            self._evaluate_when_due()
            if self._state.step >= self._steps:
                return self._finish()
            if self._leaving():
                self._leave()
            self._step()
            if self._is_save_due():
                self._save()

    def _resume(self, newest: Checkpoint) -> None:
        if newest.state.identity != self._state.identity:
            raise TrainError(
                "failed",
                "the job's checkpoints are of another base, another recipe or other data. hint: a new job, or the "
                "model and the files that they were made with",
            )
        self._state = newest.state
        self._learner.micro_batch = min(newest.state.micro_batch, self._recipe.micro_batch)
        self._learner.accumulation = self._recipe.effective_batch // self._learner.micro_batch
        self._learner.restore(newest.folder)
        self._saved_step = self._state.step

    def _started(self) -> TrainStarted:
        return TrainStarted(
            steps=self._steps,
            examples=len(self._data.learn),
            evaluation_examples=len(self._data.evaluate),
            trainable_parameters=self._learner.n_parameters,
            resumed_step=self._state.step,
            cut_examples=self._data.learn.n_cut + self._data.evaluate.n_cut,
        )

    def _step(self) -> None:
        number = self._state.step + 1
        began = time.monotonic()
        learning_rate = rate(
            number, steps=self._steps, peak=self._recipe.learning_rate, warmup_share=self._recipe.warmup_share
        )
        found = self._learner.step(
            self._data.learn,
            self._lines_of(number),
            number=number,
            learning_rate=learning_rate,
            on_halved=self._halved,
        )
        self._change(step=number, tokens=self._state.tokens + found.n_tokens)
        took = time.monotonic() - began
        self._step_s = took if not self._step_s else _REMEMBERED * self._step_s + (1 - _REMEMBERED) * took
        self._tell(
            TrainStep(
                step=number,
                loss=found.loss,
                learning_rate=learning_rate,
                tokens=self._state.tokens,
                seconds_left=self._step_s * (self._steps - number),
                memory_bytes=self._peak_bytes(),
            )
        )

    def _lines_of(self, number: int) -> list[Unit]:
        """What a step learns from."""
        epoch, at = divmod(number - 1, self._per_epoch)
        if self._batches_of != epoch + 1:
            recipe = self._recipe
            self._batches = order(self._lengths, batch=recipe.effective_batch, seed=recipe.seed, epoch=epoch + 1)
            self._batches_of = epoch + 1
        return [self._lines[i] for i in self._batches[at]]

    def _evaluate_when_due(self) -> None:
        """After every epoch, and before the first; with a checkpoint behind it. Raises Left."""
        epoch, into = divmod(self._state.step, self._per_epoch)
        if into or self._state.evaluated_epoch >= epoch:
            return
        if self._held:
            found = self._learner.evaluate(
                self._data.evaluate, self._held, go_on=lambda: not self._leaving(), on_halved=self._halved
            )
            if found is None:
                self._leave()
            else:
                self._judge(epoch, found.loss, found.accuracy)
        self._change(evaluated_epoch=epoch)
        if epoch:
            self._save()

    def _judge(self, epoch: int, loss: float, accuracy: float) -> None:
        best = self._state.best_loss
        is_best = bool(epoch) and math.isfinite(loss) and (best is None or loss < best)
        if is_best:
            self._change(best_loss=loss, best_step=self._state.step)
        self._tell(
            TrainEvaluated(
                epoch=epoch,
                step=self._state.step,
                loss=loss,
                perplexity=math.exp(min(loss, 700.0)),
                token_accuracy=accuracy,
                best=is_best,
            )
        )

    def _is_save_due(self) -> bool:
        recipe, since = self._recipe, self._state.step - self._saved_step
        by_steps = recipe.checkpoint_every_steps and since >= recipe.checkpoint_every_steps
        return bool(by_steps) or time.monotonic() - self._saved_at >= recipe.checkpoint_every_s

    def _leave(self) -> None:
        """Raises Left."""
        if self._state.step > self._saved_step:
            self._save()
        raise Left(self._saved_step)

    def _save(self) -> None:
        self._change(micro_batch=self._learner.micro_batch, accumulation=self._learner.accumulation)
        written = self._checkpoints.write(self._state, self._learner.save)
        self._saved_step, self._saved_at = self._state.step, time.monotonic()
        self._tell(CheckpointSaved(step=written.state.step, folder=str(written.folder)))

    def _finish(self) -> TrainFinished:
        wanted = self._state.best_step if self._state.best_step != self._state.step else 0
        best = self._checkpoints.at(wanted) if wanted else None
        if best is not None:
            self._learner.restore_weights(best.folder)
        folder = result.write(Path(self._recipe.folder) / "result", self._base, self._learner, self._recipe)
        lost = wanted if best is None else 0
        return TrainFinished(str(folder), self._state.tokens, self._state.step, lost_best_step=lost)

    def _halved(self, report: MicroBatchHalved) -> None:
        self._tell(report)

    def _change(self, **fields: object) -> None:
        self._state = msgspec.structs.replace(self._state, **fields)

    def _peak_bytes(self) -> int:
        if self._recipe.device == "cuda":
            return torch.cuda.max_memory_reserved()
        of_libraries = kernel.resident_bytes() - kernel.anonymous_bytes() - mapped_bytes(self._base.model)
        return kernel.peak_bytes() - of_libraries


def _widths(rows: Rows, lines: list[Unit]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    lengths = rows.lengths
    return np.array([sum(int(lengths[i]) for i in line) for line in lines], dtype=np.int64)


def _identity(recipe: Recipe, base: Base, data: Data) -> str:
    """Of everything that decides what a step learns."""
    told = [getattr(recipe, name) for name in _DECIDES]
    of_files = (base.fingerprint, data.learn.digest, data.evaluate.digest)
    return hashlib.sha256(msgspec.json.encode([*told, *of_files])).hexdigest()
