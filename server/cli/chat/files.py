"""Files that a person names in a chat: opened without waiting for anything, bounded, and no folder or device."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from server.cli.console import CliError, ExitCode


def path_of(word: str) -> Path:
    """A path as a person writes it. Raises CliError."""
    if "\0" in word:
        raise CliError("a path holds no null byte", ExitCode.USAGE)
    try:
        return Path(word).expanduser()
    except RuntimeError:
        raise CliError(f"{word}: there is no such user", ExitCode.USAGE) from None


def read_file(path: Path, *, most_bytes: int) -> bytes:
    """All of a file. Raises CliError and OSError."""
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise CliError(f"{path} is no file", ExitCode.USAGE)
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        size, limit = (f"{n / (1 << 20):.1f} MiB" for n in (max(found.st_size, len(data)), most_bytes))
        raise CliError(f"{path} has {size}; {limit} are read at most", ExitCode.USAGE)
    return data


def _without_waiting(path: str, flags: int) -> int:
    """A pipe without a writer opens at once."""
    return os.open(path, flags | os.O_NONBLOCK)
