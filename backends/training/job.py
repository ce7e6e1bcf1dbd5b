"""One run of a job: load, go on from the newest checkpoint, learn, and give the result or leave."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from backends.bnb.loading import sensible_threads
from backends.machine import kernel
from backends.messages.training import TrainLeft
from backends.pytorch import shortage
from backends.training import data
from backends.training.base import open_base
from backends.training.checkpoints import Checkpoints
from backends.training.course import Course, Left
from backends.training.errors import TrainError
from backends.training.learner import Learner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backends.messages.training import Recipe, TrainFinished, TrainReport
    from backends.training.checkpoints import Checkpoint

_STACK_BYTES: Final = 16 << 20
"""Of each thread that libraries start."""


def run(
    recipe: Recipe, tell: Callable[[TrainReport], None], *, leaving: Callable[[], bool]
) -> TrainFinished | TrainLeft:
    """Until its end, or until `leaving` says so at a boundary between steps. Raises TrainError."""
    checkpoints = Checkpoints(Path(recipe.folder) / "checkpoints")
    newest = next(reversed(checkpoints.all()), None)
    try:
        with _limited(recipe):
            return _run(recipe, checkpoints, newest, tell, leaving)
    except Left as left:
        return TrainLeft(left.step)
    except (RuntimeError, MemoryError) as error:
        if not shortage.is_shortage(error):
            raise
        raise TrainError(
            "out_of_memory",
            f"memory is short beside the steps themselves: {shortage.told(error)}. hint: method qlora, or a smaller "
            "rank",
        ) from error


def _run(
    recipe: Recipe,
    checkpoints: Checkpoints,
    newest: Checkpoint | None,
    tell: Callable[[TrainReport], None],
    leaving: Callable[[], bool],
) -> TrainFinished:
    """Raises Left or TrainError."""
    step = 0 if newest is None else newest.state.step

    def look(_: float = 0.0) -> None:
        if leaving():
            raise Left(step)

    look()
    base = open_base(recipe, look)
    found = data.load(recipe, base.encoder, look=look)
    look()
    return Course(recipe, base, Learner(base, recipe), found, checkpoints, tell, leaving).run(newest)


@contextlib.contextmanager
def _limited(recipe: Recipe) -> Iterator[None]:
    """Within it the job has the threads and at most the memory that its recipe gives it."""
    n_bytes = sum(file.stat().st_size for file in Path(recipe.base).glob("*.safetensors"))
    torch.set_num_threads(recipe.threads or sensible_threads(n_bytes))
    with contextlib.ExitStack() as stack:
        if recipe.memory_bytes and recipe.device == "cuda":
            _, total = torch.cuda.mem_get_info()
            torch.cuda.set_per_process_memory_fraction(min(1.0, recipe.memory_bytes / total))
        elif recipe.memory_bytes:
            more = max(0, recipe.memory_bytes - kernel.anonymous_bytes())
            stack.enter_context(kernel.at_most(more + _STACK_BYTES * (os.cpu_count() or 1)))
        yield
