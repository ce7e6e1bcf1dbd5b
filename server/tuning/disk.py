"""Whether the disk of the data folder holds what a training writes: its checkpoints and its result.

Asks the disk where it says so.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from server.settings.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

_SPARE_BYTES: Final = 16 * 2**20
"""That others may write meanwhile, and the tables of the data folder."""
_HINT: Final = "make room there, have XDG_DATA_HOME on another disk, or teach fewer weights (method lora, smaller rank)"


def short_of(folder: Path, n_bytes: int) -> str | None:
    """Why a job cannot write so much into its folder, with the sums; None where it can. Asks the disk.

    What lies there already counts: a job that goes on has its checkpoints. A folder that is not there yet has none.
    """
    free = free_bytes(folder)
    left = max(0, n_bytes - _held_bytes(folder))
    if left + _SPARE_BYTES <= free:
        return None
    return (
        f"its checkpoints and its result take up to {format_size(n_bytes)}, and {format_size(free)} are free on the "
        f"disk of the data folder, {format_size(_SPARE_BYTES)} of them for others. hint: {_HINT}"
    )


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which may not be there yet."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _held_bytes(folder: Path) -> int:
    """Of checkpoints and results."""
    made = (path for name in ("checkpoints", "result") for path in (folder / name).rglob("*"))
    return sum(path.stat().st_size for path in made if path.is_file())
