"""Outputs that are whole or not there: a temporary file beside the target, checked, synced, renamed.

Owns disk checks and what happens to an output when the work fails: the temporary file goes, an old output stays.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.files.model_files import BESIDE_WEIGHTS
from quantize.errors import QuantizeError
from quantize.scratch import scratch_folder
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
    """A temporary path beside `target` that takes its name when the block ends well, and else is removed.

    The block may write a file or a folder there. A full disk is told as a QuantizeError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with scratch_folder(target.parent) as folder:
            temporary = folder / target.name
            yield temporary
            sync(temporary)
            _swap(temporary, target)
            sync(target.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise QuantizeError(
                f"the disk is full: {target.name} was not written, what was there is as it was"
            ) from None
        raise


def _swap(temporary: Path, target: Path) -> None:
    """Rename; a folder cannot replace a folder in one step, so the old one steps aside and comes back on error."""
    if not target.is_dir():
        temporary.replace(target)
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    remove(aside)


def sync(path: Path) -> None:
    """Bring a file, or a folder and the files in it, to the disk."""
    inside = sorted(path.iterdir()) if path.is_dir() else []
    for entry in [*inside, path]:
        fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def remove(path: Path) -> None:
    """Remove a file or a folder that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
