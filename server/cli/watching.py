"""Files of the configuration, looked at again and again: what changes and then stays so for a moment is taken over.

Looking costs some calls of `stat`, and works on every file system and with every editor's way of replacing a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from backends.backend import HeaderError
from server.memory.files import FileReader
from server.reload import ReloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from server.reload import Reloader
    from server.settings.config import Settings

_LOG = logging.getLogger("onecard.watch")
EVERY_S: Final = 0.5
_WITHIN_S: Final = 10.0
_MOST_FILES: Final = 5000
_DEPTH: Final = 5
State = frozenset[tuple[str, int, int]]
"""Each file with its size and the time of its last change."""


@dataclass(frozen=True)
class Watched:
    """What is watched, and how it was when it was read."""

    files: Callable[[Settings], list[Path]]
    as_read: State | None
    """Looked at before it was read, so that no change since then is missed; None: read it once more."""


async def watch(watched: Watched, reloader: Reloader, *, every_s: float = EVERY_S) -> None:
    """Have the configuration read again whenever it has changed; ends with its task.

    A change is taken over once two looks have found the same, so that no half of a file that is being written is.
    What changes while it is read, and files that are watched from then on, count as another change.
    """
    reader = FileReader(within_s=_WITHIN_S)
    taken = before = watched.as_read
    while True:
        await asyncio.sleep(every_s)
        now = await _look(reader, watched.files(reloader.settings))
        if now is not None and now == before and now != taken:
            taken = now
            try:
                await reloader.reload("watch")
            except ReloadError:
                pass  # told where it happened
            except Exception:  # a fault of ours must not end the watching
                _LOG.exception("watch_failed")
        before = now


def looked_at(paths: list[Path]) -> State | None:
    """How these files are now; None where their disk does not answer."""
    return asyncio.run(_look(FileReader(within_s=_WITHIN_S), paths))


async def _look(reader: FileReader, paths: list[Path]) -> State | None:
    """None where the disk does not answer."""
    try:
        return await reader.read("watch", lambda: state_of(paths))
    except HeaderError:
        return None


def state_of(paths: Iterable[Path]) -> State:
    """These files, and all below these folders as far as models are looked for; what is not there is left out."""
    found: set[tuple[str, int, int]] = set()
    for path in paths:
        if path.is_dir():
            for root, folders, names in os.walk(path):
                if len(Path(root).relative_to(path).parts) >= _DEPTH:
                    folders.clear()
                found |= _told(os.path.join(root, name) for name in names)  # noqa: PTH118 - many of them
                if len(found) > _MOST_FILES:
                    break
        else:
            found |= _told([str(path)])
    return frozenset(found)


def _told(names: Iterable[str]) -> set[tuple[str, int, int]]:
    told = set()
    for name in names:
        with contextlib.suppress(OSError):
            status = os.stat(name)  # noqa: PTH116 - many of them
            told.add((name, status.st_size, status.st_mtime_ns))
    return told
