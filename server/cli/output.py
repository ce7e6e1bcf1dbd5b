"""Standard output and what files say: every OSError of a command becomes one sentence, here and nowhere else."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_STDOUT = "standard output"
_HINTS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "this user has no right to it",
    errno.EPERM: "this user has no right to it",
    errno.EROFS: "the file system is read-only",
    errno.EEXIST: "something else is there already",
    errno.ENOTDIR: "a part of the path is no folder",
    errno.EISDIR: "it is a folder",
    errno.ENOENT: "there is no such file or folder",
    errno.EMFILE: "this process has no file left. hint: raise ulimit -n",
    errno.ENAMETOOLONG: "the name is too long",
    errno.EBADF: "it is closed",
}


class Output(io.TextIOWrapper):
    """Standard output whose failures say that it is standard output, and that writes what no character set has."""

    def write(self, text: str) -> int:
        """As ever."""
        with naming(_STDOUT):
            return super().write(text)

    def flush(self) -> None:
        """As ever."""
        with naming(_STDOUT):
            super().flush()


@contextlib.contextmanager
def naming(place: str | Path) -> Generator[None, None, None]:
    """An OSError that names no path gets this one: a full disk is told by a `write`, which knows none."""
    try:
        yield
    except OSError as problem:
        if problem.filename is None:
            problem.filename = str(place)
        raise


def open_output() -> None:
    """Make this process's standard output an `Output`."""
    if type(sys.stdout) is io.TextIOWrapper:
        old = sys.stdout
        buffered = old.line_buffering
        encoding = old.encoding
        sys.stdout = Output(old.detach(), encoding=encoding, errors="backslashreplace", line_buffering=buffered)


def sentence(problem: OSError) -> str:
    """What has happened and where: `/mnt/x: the disk is full`."""
    reason = _HINTS.get(problem.errno or 0) or problem.strerror or str(problem) or type(problem).__name__
    place = problem.filename2 or problem.filename
    if isinstance(place, bytes):
        place = os.fsdecode(place)
    if place is None or isinstance(place, int):
        return " ".join(reason.split())
    return " ".join(
        f"{place} cannot be written: {reason}".split() if place == _STDOUT else f"{place}: {reason}".split()
    )


def silence(stream: TextIO) -> None:
    """What is still buffered for a stream that takes nothing must not fail at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
