"""Outputs that are whole or not there: a temporary file beside the target, checked, synced, renamed.

Owns disk checks and what happens to an output when the work fails: the temporary file goes, an old output stays.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.files import whole
from backends.files.model_files import BESIDE_WEIGHTS
from quantize.errors import QuantizeError
from quantize.words import size

SPARE_BYTES = 16 * 2**20
"""Left free on the disk beside an output."""


def check_target(target: Path, source: Path, *, force: bool) -> None:
    """Refuse a target that is the source, lies in it, or is there already. Raises QuantizeError."""
    if target.resolve() == source.resolve() or (target.exists() and target.samefile(source)):
        raise QuantizeError(f"the output {target.name} is the source itself", usage=True)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()) and target.suffix != ".gguf":
        raise QuantizeError(f"the output {target.name} lies inside the source folder", usage=True)
    if target.is_dir() and target.suffix == ".gguf":
        raise QuantizeError(f"{target.name} is a folder", usage=True)
    if target.exists() and not force:
        raise QuantizeError(f"{target.name} exists. hint: --force replaces it", usage=True)


def check_space(folder: Path, n_bytes: int) -> None:
    """Raise QuantizeError when the disk has no room for `n_bytes` more."""
    free = shutil.disk_usage(folder).free
    if n_bytes + SPARE_BYTES > free:
        raise QuantizeError(
            f"the outputs need {size(n_bytes)}, {size(free)} are free where {folder.name or folder} lies"
        )


def copy_beside_weights(source: Path, target: Path) -> None:
    """Tokenizer, template and what else another folder of the same model takes over; the source was checked before."""
    for name in BESIDE_WEIGHTS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """`backends.files.whole.replacing`, which tells of a full disk as a QuantizeError."""
    try:
        with whole.replacing(target) as temporary:
            yield temporary
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuantizeError(
                f"the disk is full: {target.name} was not written, what was there is as it was"
            ) from None
        raise
