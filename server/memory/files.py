"""What is known of models' files: looked at by threads that a hanging disk may hold, and kept until a file changes.

For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from backends.backend import Header, HeaderError
from backends.files.adapters import statuses
from backends.files.model_files import FileError, reason, statuses_of
from backends.registry import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.settings.catalog import CatalogEntry

T = TypeVar("T")
FileKey = tuple[int, int, int]
"""Size, time of change in ns, inode: another file is another model."""

WITHIN_S: Final = 8.0
"""For one model's configuration, headers and vocabulary files; no weights are among them."""
AT_ONCE_S: Final = 0.05
_NOT_THERE: Final[FileKey] = (0, 0, 0)


@dataclass(frozen=True)
class FileFacts:
    """A model's files as they were at the last look."""

    path: Path
    key: FileKey
    header: Header
    identity: str = ""
    """Tells its file from every other on this machine, whatever it is called."""
    changed_ns: int = 0
    """When it was changed last, since 1970."""


class ModelFiles:
    """The facts of every model of a catalogue, as of the last look at each."""

    def __init__(self) -> None:
        self._reader = FileReader()
        self._facts: dict[str, FileFacts] = {}
        self._problems: dict[str, str] = {}
        self._refused: dict[str, tuple[FileKey, str]] = {}
        self._n_forgotten: Counter[str] = Counter()

    def facts(self, model: str) -> FileFacts | None:
        """As of the last look; None where there was none, or something is wrong."""
        return self._facts.get(model)

    def problem(self, model: str) -> str | None:
        """What is wrong with a model's files; None where nothing is."""
        facts, refused = self._facts.get(model), self._refused.get(model)
        if facts is not None and refused is not None and refused[0] == facts.key:
            return refused[1]
        return self._problems.get(model)

    def refuse(self, model: str, key: FileKey, why: str) -> None:
        """The engine does not take the files as they are now, sound as their headers are."""
        self._refused[model] = key, why

    async def look(self, entry: CatalogEntry, *, otherwise: bool = False) -> FileFacts:
        """The facts now; the files are read again where they have changed. Raises HeaderError.

        `otherwise`: the entry is configured otherwise than the model is, so what is known counts for nothing.
        """
        # What is known is asked for when its turn has come: another look may have read the same files meanwhile.
        return await self._reader.read(
            entry.name, lambda: look(entry, None if otherwise else self._facts.get(entry.name))
        )

    async def inspect(self, entry: CatalogEntry) -> FileFacts:
        """The same, and kept: the facts, or what is wrong. Raises HeaderError."""
        before = self._n_forgotten[entry.name]
        try:
            after = await self.look(entry)
        except HeaderError as error:
            if before == self._n_forgotten[entry.name]:
                self._facts.pop(entry.name, None)
                self._problems[entry.name] = str(error)
            raise
        if before == self._n_forgotten[entry.name]:
            self._facts[entry.name] = after
            self._problems.pop(entry.name, None)
        return after

    def forget(self, model: str) -> None:
        """Know nothing of it; a look that is under way is at what it was."""
        self._n_forgotten[model] += 1
        for known in (self._facts, self._problems, self._refused):
            known.pop(model, None)

    def state_now(self, entry: CatalogEntry) -> FileKey | None:
        """What tells one state of a model's files from another; None where their disk does not answer at once."""
        return self._reader.at_once(entry.name, lambda: _state_of(entry))

    def forget_if_changed(self, entry: CatalogEntry) -> None:
        """Forget what a file held when it is not the same any more: one call of `stat`, made before a refusal."""
        facts = self._facts.get(entry.name)
        if facts is None:
            return
        key = self.state_now(entry)
        if key is not None and key != facts.key:
            del self._facts[entry.name]


def look(entry: CatalogEntry, before: FileFacts | None = None) -> FileFacts:
    """Read the header, unless nothing has changed. Raises HeaderError; blocks on the disk."""
    if (missing := entry.still_missing()) is not None:
        raise HeaderError(missing)
    if entry.draft is not None and (missing := entry.draft.still_missing()) is not None:
        raise HeaderError(f"its draft model '{entry.draft.name}' is not there: {missing}")
    try:
        key = key_of(entry)
    except OSError as error:
        raise HeaderError(f"{entry.path.name} cannot be read: {reason(error)}") from None
    if before is not None and before.key == key:
        return before
    try:
        header = BACKENDS[entry.backend].describe(entry.path, entry.options)
        status = _main_file(entry.path)
    except OSError as error:
        raise HeaderError(f"one of its files cannot be read: {reason(error)}") from None
    return FileFacts(entry.path, key, header, _identity(status), status.st_mtime_ns)


def _told_of_options(entry: CatalogEntry) -> list[object]:
    """The options that were written down, and the state of the adapters and folders among them."""
    options = entry.options
    folders = BACKENDS[entry.backend].options().folders(entry.path, options)
    inside = [status for folder in folders if folder.is_dir() for status in statuses_of(sorted(folder.iterdir()))]
    return [*sorted(options.items()), *statuses(options), *inside]


def key_of(entry: CatalogEntry) -> FileKey:
    """What tells one state of a model's files, as they are to be loaded, from another. Raises OSError.

    One system call for a file, and one for each file of a folder and of those that belong to it.
    """
    status = os.stat(entry.path)  # noqa: PTH116 - the three figures are of one call
    if not stat.S_ISDIR(status.st_mode):
        others, options = _other_parts(entry), _told_of_options(entry)
        if not others and not options:
            return status.st_size, status.st_mtime_ns, status.st_ino
        told = repr(([(part.st_size, part.st_mtime_ns) for part in (status, *others)], options))
        return sum(part.st_size for part in (status, *others)), zlib.crc32(told.encode()), status.st_ino
    inside = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(entry.path) if e.is_file())
    draft = [(part.st_size, part.st_mtime_ns) for part in _draft_parts(entry)]
    told = repr((inside, draft, _told_of_options(entry)))
    return sum(size for _, size, _ in inside), zlib.crc32(told.encode()), status.st_ino


def identity_of(path: Path) -> str:
    """What tells a model's file from every other on this machine, by whatever path or link it is named. Raises OSError.

    Of a folder it is its config.json that does; of one without, the folder itself.
    """
    return _identity(_main_file(path))


def _main_file(path: Path) -> os.stat_result:
    config = path / "config.json"
    return (config if config.exists() else path).stat()


def _identity(status: os.stat_result) -> str:
    return f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"


def _other_parts(entry: CatalogEntry) -> list[os.stat_result]:
    """Of a file that is split the parts behind the first, and files that may belong to it. Raises OSError."""
    try:
        files = BACKENDS[entry.backend].recognise(entry.path)
    except (HeaderError, FileError):
        files = None
    own = [part.stat() for part in (*files.weights[1:], *files.beside)] if files is not None else []
    return [*own, *_draft_parts(entry)]


def _draft_parts(entry: CatalogEntry) -> list[os.stat_result]:
    """Of the model that drafts for it: what it takes depends on both. Raises OSError."""
    if entry.draft is None:
        return []
    path = entry.draft.path
    return [path.stat(), *(part.stat() for part in sorted(path.glob("*.safetensors")))]


def _state_of(entry: CatalogEntry) -> FileKey:
    try:
        return key_of(entry) if entry.still_missing() is None else _NOT_THERE
    except OSError:
        return _NOT_THERE


@dataclass
class _Reading(Generic[T]):
    """One thread's work, and what came of it."""

    began: float = field(default_factory=time.monotonic)
    result: T | None = None
    error: BaseException | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def run(self, work: Callable[[], T]) -> None:
        try:
            self.result = work()
        except BaseException as error:  # told to the one that waits
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


class FileReader:
    """Threads that read, and nothing else: one per model at most, each given up after a while.

    A disk or a network file system that does not answer holds a thread for ever, and no one can end it. So these are
    daemon threads, they share no pool with anything else, and a model whose thread is stuck gets no other one.
    """

    def __init__(self, *, within_s: float = WITHIN_S) -> None:
        self._within_s = within_s
        self._busy: dict[str, _Reading[object]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def read(self, name: str, work: Callable[[], T]) -> T:
        """What `work` gives, done on a thread for the model of this name. Raises HeaderError when it takes too long."""
        self._refuse_if_stuck(name)
        turn = self._turns.setdefault(name, asyncio.Lock())
        try:
            async with asyncio.timeout(self._within_s):
                async with turn:
                    reading = await self._begun(name, work)
        except TimeoutError:
            raise HeaderError(self._told()) from None
        return reading.outcome()

    def at_once(self, name: str, work: Callable[[], T]) -> T | None:
        """The same without giving way to anybody; None where it does not come at once. For a look at a file's size."""
        if name in self._busy:
            return None
        reading = self._start(name, work)
        return reading.outcome() if reading.over.wait(AT_ONCE_S) else None

    async def _begun(self, name: str, work: Callable[[], T]) -> _Reading[T]:
        while (busy := self._busy.get(name)) is not None:
            await _end_of(busy)
        reading = self._start(name, work)
        await _end_of(reading)
        return reading

    def _start(self, name: str, work: Callable[[], T]) -> _Reading[T]:
        reading: _Reading[T] = _Reading()
        self._busy[name] = reading  # type: ignore[assignment]

        def run() -> None:
            reading.run(work)
            del self._busy[name]
            reading.over.set()

        threading.Thread(target=run, name="model-files", daemon=True).start()
        return reading

    def _refuse_if_stuck(self, name: str) -> None:
        busy = self._busy.get(name)
        if busy is not None and time.monotonic() - busy.began > self._within_s:
            raise HeaderError(self._told())

    def _told(self) -> str:
        return (
            f"its files could not be read within {self._within_s:g} s: their disk or network file system does not "
            "answer. hint: look at it with `ls`; the model is served once it answers again"
        )


async def _end_of(reading: _Reading[T]) -> None:
    """Wait for the thread; its end is looked for, because it may come when no loop runs any more."""
    pause_s = 0.0005
    while not reading.over.is_set():
        await asyncio.sleep(pause_s)
        pause_s = min(0.05, pause_s * 1.5)
