"""From a model's files to prices: looks at them, asks dry loads for what arithmetic cannot know, learns from loads.

Owns no memory and no model: `onecard fit` uses it without a server.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends import dry
from backends.backend import Header, HeaderError
from backends.model_files import FileError, reason
from backends.plan import LoadPlan, Wish
from backends.registry import BACKENDS, TEST_ENGINE, backend_of
from server.memory.estimates import Estimate, Estimates, FileKey
from server.memory.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from backends.plan import Device, Footprint
    from server.settings.catalog import CatalogEntry
    from server.settings.config import ModelConfig

MOST_DRY_PLANS: Final = 24
"""Per model; those that placement tries first."""


@dataclass(frozen=True)
class Looked:
    """A model's files as they were at the last look."""

    path: Path
    key: FileKey
    header: Header


def look(entry: CatalogEntry, before: Looked | None = None) -> Looked:
    """Read the header, unless nothing has changed. Raises HeaderError; blocks on the disk."""
    if (missing := entry.still_missing()) is not None:
        raise HeaderError(missing)
    try:
        key = key_of(entry)
    except OSError as error:
        raise HeaderError(f"{entry.path.name} cannot be read: {reason(error)}") from None
    if before is not None and before.key == key:
        return before
    try:
        header = BACKENDS[entry.backend].describe(entry.path, entry.config.options_of(entry.backend))
    except OSError as error:
        raise HeaderError(f"one of its files cannot be read: {reason(error)}") from None
    return Looked(entry.path, key, header)


def key_of(entry: CatalogEntry) -> FileKey:
    """What tells one state of a model's files, as they are to be loaded, from another. Raises OSError.

    One system call for a file, and one for each file of a folder.
    """
    status = os.stat(entry.path)  # noqa: PTH116 - the three figures are of one call
    if not stat.S_ISDIR(status.st_mode):
        others = _other_parts(entry)
        if not others:
            return status.st_size, status.st_mtime_ns, status.st_ino
        told = repr([(part.st_size, part.st_mtime_ns) for part in (status, *others)])
        return sum(part.st_size for part in (status, *others)), zlib.crc32(told.encode()), status.st_ino
    inside = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in os.scandir(entry.path) if e.is_file())
    told = repr((inside, sorted(entry.config.options_of(entry.backend).items())))
    return sum(size for _, size, _ in inside), zlib.crc32(told.encode()), status.st_ino


def _other_parts(entry: CatalogEntry) -> list[os.stat_result]:
    """Of a file that is split: the parts behind the first. Raises OSError."""
    try:
        files = BACKENDS[entry.backend].recognise(entry.path)
    except (HeaderError, FileError):
        files = None
    return [part.stat() for part in files.weights[1:]] if files is not None else []


def wish(config: ModelConfig, device: Device) -> Wish:
    """What the configuration asks for, and what it leaves to choose."""
    return Wish(
        context=None if config.context == "auto" else config.context,
        parallel=config.parallel,
        kv_type=config.kv_type,
        gpu_layers=None if config.gpu_layers == "auto" else config.gpu_layers,
        device=device,
        open=config.open,
        kv_tokens=None if config.kv_tokens == "auto" else config.kv_tokens,
    )


class Estimator:
    """The estimates with what fills it."""

    def __init__(self, prices: Estimates | None = None) -> None:
        self.prices = prices or Estimates()
        self._saver = Reader()

    def quote(self, looked: Looked, plan: LoadPlan) -> Estimate:
        """The best price there is, at once."""
        return self.prices.quote(looked.key, looked.header, plan)

    def price_of(self, looked: Looked, *, within_bytes: int) -> Callable[[LoadPlan], Footprint]:
        """The prices of one model's plans, with the doubts that leave them possible in so many bytes."""
        return lambda plan: self.quote(looked, plan).within(within_bytes)

    async def ask_dry(self, models: Iterable[tuple[Looked, Sequence[LoadPlan]]]) -> None:
        """Let one patient child tell the exact prices; a child that fails leaves the computed ones."""
        if TEST_ENGINE in os.environ:  # whatever tests load with, it is not llama.cpp
            return
        asked = {question: looked for looked, wanted in models for question in self._questions(looked, wanted)}
        async with contextlib.aclosing(dry.ask(list(asked))) as answers:  # its child ends with it
            async for question, answer in answers:
                looked = asked[question]
                for plan, sizes in zip(question.plans, answer, strict=True):
                    self.prices.note_dry(looked.key, looked.header, plan, sizes)
        if asked:
            await self.save()

    def learn(self, looked: Looked, plan: LoadPlan, measured_bytes: int) -> None:
        """Remember what a loaded plan really takes, so that the next price is better; `save` keeps it."""
        if measured_bytes > 0:
            self.prices.learn(looked.key, looked.header, plan, measured_bytes)

    def doubt(self, looked: Looked, plan: LoadPlan) -> int:
        """Remember that a load of the plan ran out of memory: by how many bytes its price counts more from now on."""
        return self.prices.doubt(looked.key, looked.header, plan)

    async def save(self) -> None:
        """Keep what has been learned for the next run."""
        with contextlib.suppress(HeaderError):  # a disk that hangs costs what was learned, and one thread
            await self._saver.read("learned", self.prices.learned.save)

    def _questions(self, looked: Looked, wanted: Sequence[LoadPlan]) -> list[dry.Question]:
        """The plans whose exact price is missing, those with the same layers on the GPU together."""
        module = backend_of(looked.header).dry
        if module is None:
            return []
        known = self.prices.has_dry
        missing = [plan for plan in wanted[:MOST_DRY_PLANS] if not known(looked.key, looked.header, plan)]
        layers = dict.fromkeys(plan.gpu_layers for plan in missing)
        return [dry.Question(module, looked.path, tuple(p for p in missing if p.gpu_layers == n)) for n in layers]


def likely_plans(looked: Looked, wanted: Wish) -> list[LoadPlan]:
    """What placement may choose, best first."""
    return list(backend_of(looked.header).plans(looked.header, wanted))
