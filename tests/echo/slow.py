"""The same kind of model on a disk that takes long for every file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from backends.backend import Setting
from tests.echo.backend import Echoes, EchoHeader

DISK_S: Final = 2.5


class SlowEchoes(Echoes):
    """See `backends.backend.Backend`."""

    def describe(self, path: Path, options: Mapping[str, Setting]) -> EchoHeader:
        time.sleep(DISK_S)  # what the disk takes; nothing waits for something else by it
        return super().describe(path, options)
