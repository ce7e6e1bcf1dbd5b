"""Whether disk and memory are enough for what comes, before it begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from installer.build import Build
from installer.machine import Machine
from installer.words import InstallError, size

MIB = 2**20
VENV_BYTES = {"serve": 500 * MIB, "install": 2000 * MIB, "test": 2500 * MIB, "gpu": 400 * MIB}
"""What `.venv` takes; with PyTorch for CUDA see `CARD_BYTES`."""
CARD_BYTES = 4500 * MIB
"""What PyTorch for CUDA takes more than the one for processors."""
TOOLKIT_BYTES = 900 * MIB
COMPILE_BYTES = {False: 700 * MIB, True: 1500 * MIB}
"""By whether it is for CUDA: what compiling takes in the folder for temporary files."""
JOB_BYTES = {False: 1000 * MIB, True: 2000 * MIB}
"""What one compiler takes."""
LEAST_BYTES = 500 * MIB
"""Compiling is not begun with less memory."""


def venv_bytes(variant: str, build: Build) -> int:
    """What `.venv` takes."""
    torch = CARD_BYTES if build.cuda and variant in ("install", "test") else 0
    return VENV_BYTES[variant] + torch + (TOOLKIT_BYTES if build.toolkit_from_index else 0)


def check_disk(needs: Mapping[Path, int]) -> None:
    """Raises InstallError where a disk has less than what will be written to the folders on it."""
    disks: dict[int, list[Path]] = {}
    for folder in needs:
        disks.setdefault(_there(folder).stat().st_dev, []).append(folder)
    for folders in disks.values():
        free = shutil.disk_usage(_there(folders[0])).free
        needed = sum(needs[folder] for folder in folders)
        if free < needed:
            where = " and ".join(str(folder) for folder in folders)
            hint = "free some"
            if Path(tempfile.gettempdir()) in folders:
                hint += ", or name a folder with room: TMPDIR=/path before the command"
            raise InstallError(f"{where}: {size(free)} are free, and this takes {size(needed)}. hint: {hint}")


def check_writable(folder: Path) -> None:
    """Raises InstallError where nothing can be written."""
    if not os.access(_there(folder), os.W_OK | os.X_OK):
        raise InstallError(f"{_there(folder)} may not be written. hint: make it yours (chown), or clone elsewhere")


def jobs(machine: Machine, build: Build, environ: Mapping[str, str]) -> int | None:
    """How many files to compile at once; None where all processors may. Raises InstallError where none can be."""
    if environ.get("CMAKE_BUILD_PARALLEL_LEVEL"):
        return None
    if not machine.memory_bytes:  # the kernel does not tell
        return None
    if machine.memory_bytes < LEAST_BYTES:
        raise InstallError(
            f"{size(machine.memory_bytes)} of memory are free, and compiling llama.cpp takes "
            f"{size(JOB_BYTES[build.cuda])}. hint: end other programs, or add swap"
        )
    most = max(1, machine.memory_bytes // JOB_BYTES[build.cuda])
    return most if most < machine.processors else None


def _there(folder: Path) -> Path:
    """The folder, or the one that it will be made in."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def taken_bytes(folder: Path) -> int:
    """What a folder takes already."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
