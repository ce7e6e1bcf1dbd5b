"""How far `onecard pull` is: a bar in a terminal, plain lines without one, and lines of JSON for programs."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final

from server.cli.console import say, write_json_line
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import TaskID

    from server.hub.choice import RemoteFile

_LINE_EVERY_S: Final = 5.0
_JSON_EVERY_S: Final = 0.2


class _Lines:
    """Progress without a terminal: a line for each file, and one every few seconds."""

    def __init__(self) -> None:
        self._name, self._size, self._done, self._told_s = "", 0, 0, 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def file(self, file: RemoteFile, done: int) -> None:
        self._name, self._size, self._done, self._told_s = file.name, file.size, done, time.monotonic()
        already = f", {format_size(done)} are there" if done else ""
        say(f"fetching {file.name}: {format_size(file.size)}{already}")

    def advance(self, n_bytes: int) -> None:
        self._done += n_bytes
        if time.monotonic() - self._told_s >= _LINE_EVERY_S:
            self._told_s = time.monotonic()
            say(f"fetching {self._name}: {100 * self._done // max(1, self._size)} %, {format_size(self._done)}")


class _Bar:
    """Progress in a terminal, on stderr."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def file(self, file: RemoteFile, done: int) -> None:
        self._task = self._bar.add_task(file.name, total=file.size, completed=done)

    def advance(self, n_bytes: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, n_bytes)


class _JsonLines:
    """Progress as lines of JSON on stdout, for programs: `status`, and of a file `digest`, `total`, `completed`."""

    def __init__(self) -> None:
        self._file: RemoteFile | None = None
        self._done, self._told_s = 0, 0.0

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def file(self, file: RemoteFile, done: int) -> None:
        self._file, self._done = file, done
        self._tell()

    def advance(self, n_bytes: int) -> None:
        self._done += n_bytes
        whole = self._file is not None and self._done >= self._file.size
        if whole or time.monotonic() - self._told_s >= _JSON_EVERY_S:
            self._tell()

    def _tell(self) -> None:
        self._told_s = time.monotonic()
        if (file := self._file) is not None:
            digest = f"sha256:{file.sha256}" if file.sha256 else f"sha1:{file.blob_id}"
            far = {"digest": digest, "total": file.size, "completed": self._done}
            write_json_line({"status": f"pulling {file.name}", **far})


def progress(*, as_lines: bool) -> _Bar | _Lines | _JsonLines:
    """What suits who reads it."""
    return _JsonLines() if as_lines else _Bar() if sys.stderr.isatty() else _Lines()
