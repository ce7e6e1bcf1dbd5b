"""What a job gives: an adapter as peft writes it, or a model folder in the base's own type, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from backends.files.model_files import BESIDE_WEIGHTS
from backends.training.checkpoints import write_folder

if TYPE_CHECKING:
    from backends.messages.training import Recipe
    from backends.training.base import Base
    from backends.training.learner import Learner

_DTYPES: Final = {"BF16": torch.bfloat16, "F16": torch.float16}


def write(folder: Path, base: Base, learner: Learner, recipe: Recipe) -> Path:
    """Write it; what stood there is replaced. Raises TrainError where the disk is full."""
    if recipe.method == "full":
        write_folder(folder, lambda aside: _whole_model(aside, base, Path(recipe.base)))
    else:
        write_folder(folder, learner.save_weights)
    return folder


def _whole_model(folder: Path, base: Base, source: Path) -> None:
    types = {tensor.dtype for tensor in base.info.tensors if len(tensor.shape) >= 2}
    dtype = _DTYPES.get(next(iter(types)), torch.float32) if len(types) == 1 else torch.float32
    base.model.to(dtype).save_pretrained(folder)
    for name in (*BESIDE_WEIGHTS, "config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
