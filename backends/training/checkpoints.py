"""Checkpoints on the disk: written aside and renamed, so that one is there whole or not at all, whatever is killed.

One of a step that has one already gets a name of its own (`step-00000040-1`), and the older one goes when it is there:
a rename that replaces a folder would be two. Each is a folder: the weights that learn, the optimiser's moments, and
`state.json`, which names sizes of both. Weights of an adapter are as peft writes them. Safetensors only: a checkpoint
is never unpickled.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from backends.files import model_files, whole
from backends.training.errors import TrainError
from backends.training.price import KEPT_CHECKPOINTS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

STATE: Final = "state.json"
_NAME: Final = re.compile(r"step-(\d{8})(?:-(\d{1,6}))?")
_GONE: Final = ".gone-"
_STATE_BYTES: Final = 2**20


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a job stands behind a step; everything else follows from the recipe and the step's number."""

    step: int = 0
    tokens: int = 0
    micro_batch: int = 1
    accumulation: int = 1
    evaluated_epoch: int = -1
    """The last epoch whose evaluation is behind it; -1: none, 0: that before the first step."""
    best_loss: float | None = None
    best_step: int = 0
    """The step whose checkpoint becomes the result; 0: the last one."""
    identity: str = ""
    """Of recipe and data."""
    files: dict[str, int] = {}
    """Sizes in bytes."""


class Checkpoint(msgspec.Struct, frozen=True):
    """One that is whole."""

    folder: Path
    state: State


class Checkpoints:
    """Those of one job, which alone writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*"):
            whole.remove(left)

    def all(self) -> list[Checkpoint]:
        """Those that are whole, one of each step, the oldest first."""
        found = {}
        for (step, _), path in self._named():
            if (one := self._read(path)) is not None:
                found[step] = one
        return list(found.values())

    def at(self, step: int) -> Checkpoint | None:
        """The one behind that step, if it is there and whole."""
        return next((one for one in self.all() if one.state.step == step), None)

    def write(self, state: State, fill: Callable[[Path], None]) -> Checkpoint:
        """Make one; `fill` writes files into a folder. Raises TrainError where the disk is full or refuses."""
        target = self.folder / self._free_name(state.step)

        def whole(folder: Path) -> None:
            fill(folder)
            sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
            told = msgspec.structs.replace(state, files=sizes)
            (folder / STATE).write_bytes(msgspec.json.encode(told))

        write_folder(target, whole)
        written = self._read(target)
        if written is None:
            raise TrainError("disk", f"the checkpoint {target.name} was written and cannot be read again")
        self._tidy(keep={written.state.step, written.state.best_step})
        return written

    def _named(self) -> list[tuple[tuple[int, int], Path]]:
        """Step and number of each folder that is called like a checkpoint, and where it is; the oldest first."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return sorted(((int(name[1]), int(name[2] or 0)), path) for name, path in found if name is not None)

    def _free_name(self, step: int) -> str:
        last = max((number for (of_step, number), _ in self._named() if of_step == step), default=None)
        return f"step-{step:08d}" if last is None else f"step-{step:08d}-{last + 1}"

    def _tidy(self, keep: Collection[int]) -> None:
        """Remove old ones, by a rename first: half of a folder is never taken for one."""
        whole = self.all()
        newest = {one.state.step for one in whole[1 - KEPT_CHECKPOINTS :]}
        stay = {one.folder for one in whole if one.state.step in {*newest, *keep}}
        for _, path in self._named():
            if path not in stay:
                gone = self.folder / f"{_GONE}{path.name}"
                path.rename(gone)
                shutil.rmtree(gone)

    @staticmethod
    def _read(folder: Path) -> Checkpoint | None:
        """None for what is not there, and for one whose files are not those that were written."""
        try:
            state = msgspec.json.decode(model_files.read_bytes(folder / STATE, _STATE_BYTES), type=State)
            sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != STATE}
        except (model_files.FileError, msgspec.DecodeError, OSError):
            return None
        return Checkpoint(folder, state) if sizes == state.files else None


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Have a folder written aside, and give it its name; what stood there goes first.

    Raises TrainError where the disk is full or refuses; then there is neither.
    """
    whole.remove(target)
    written, free = 0, None
    try:
        with whole.replacing(target) as aside:
            aside.mkdir()
            try:
                fill(aside)
            finally:  # before the half of a folder goes
                written, free = _written_bytes(aside), shutil.disk_usage(aside).free
    except Exception as error:
        if not _is_of_disk(error):
            raise
        why = model_files.reason(error) if isinstance(error, OSError) else "no space left on device"
        beside = "" if free is None else f", with {free / 2**20:.1f} MiB free"
        raise TrainError(
            "disk",
            f"{target.name} cannot be written: {why} behind {written / 2**20:.1f} MiB of it{beside}. "
            "hint: make room on the disk of the data folder, and begin a new job",
        ) from error


def _written_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _is_of_disk(error: Exception) -> bool:
    """safetensors tells of a full disk in an error of its own."""
    return isinstance(error, OSError) or "I/O error" in str(error)
