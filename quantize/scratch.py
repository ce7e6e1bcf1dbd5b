"""Folders for half-done work beside the target, that no interruption leaves behind."""

from __future__ import annotations

import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, gone when the block ends, however it ends."""
    folder: tempfile.TemporaryDirectory[str] | None = None
    try:
        with _uninterrupted():
            folder = tempfile.TemporaryDirectory(prefix=".onecard-", dir=parent)
        yield Path(folder.name)
    finally:
        if folder is not None:
            with _uninterrupted():
                folder.cleanup()


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back: an interrupt between making a folder and knowing its name would lose it."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread is ever interrupted
        yield
        return
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for held in seen:
            signal.raise_signal(held)
