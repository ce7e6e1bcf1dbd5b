"""Another configuration for a running server: read, checked, taken over as a whole or not at all, and told.

Owns what the running settings are. What is wrong leaves everything as it is. For the event loop's thread only.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from backends.backend import HeaderError
from backends.files.model_files import reason
from server.memory.files import FileReader
from server.settings.catalog import Catalog, TunedAdapter, entry_of
from server.settings.changes import taken_over
from server.settings.config_source import ConfigError
from server.settings.listener import open_listener
from server.settings.named_models import CatalogError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from server.door.rules import DoorRules
    from server.pool.pool import Pool
    from server.settings.config import Settings
    from server.tuning.job import TunedModel

_LOG: Final = logging.getLogger("onecard.training")
_READ_WITHIN_S: Final = 60.0
"""For the file, and a look for every model's files."""


class ReloadError(Exception):
    """A configuration that is not taken over; the text says why, and the server goes on with the one it has."""


@dataclass(frozen=True)
class Reading:
    """A configuration as it was read, and what is to be said of it."""

    settings: Settings
    notes: list[str] = field(default_factory=list)


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a reload has changed: the answer of `POST /v1/config/reload`."""

    object: str = "config.reload"
    added: list[str]
    changed: dict[str, list[str]]
    """Models that are configured otherwise, with the keys that are."""
    reloading: list[str]
    """Those of them that are loaded anew once what they run has ended; the others are as configured already."""
    removed: list[str]
    """They serve what they have accepted, and leave."""
    settings: list[str]
    """Other keys that have changed, by section."""
    restart: list[str]
    """Keys that were changed and hold from the next start on."""
    missing: dict[str, str]
    """Models whose files are not there, and why."""
    notes: list[str]


class Reloader:
    """See the module's text. `read` blocks on the disk and raises ConfigError or CatalogError."""

    def __init__(
        self,
        settings: Settings,
        read: Callable[[], Reading],
        *,
        catalog: Catalog,
        pool: Pool,
        door: DoorRules,
        adopt: Callable[[Settings], None],
    ) -> None:
        self.settings = settings
        """Those that are in effect."""
        self._read = read
        self._catalog = catalog
        self._pool = pool
        self._door = door
        self._adopt = adopt
        self._turn = asyncio.Lock()
        self._beside: dict[str, str] = {}
        """Paths of models that were fetched while the server runs and that no configuration names."""
        self._tuned: dict[str, TunedAdapter] = {}
        self._reader = FileReader(within_s=_READ_WITHIN_S)

    async def reload(self, asked_by: str) -> Reloaded:
        """Take the configuration over as it is now; one after the other. Raises ReloadError."""
        async with self._turn:
            try:
                if self._pool.draining:
                    raise ReloadError("the server is shutting down")
                reading, wanted = await self._reader.read("configuration", self._wanted)
                return self._take(reading, wanted, asked_by)
            except (ConfigError, CatalogError, HeaderError, ReloadError, OSError) as problem:
                why = f"it cannot be read: {reason(problem)}" if isinstance(problem, OSError) else str(problem)
                self._pool.tell("config_refused", by=asked_by, reason=why)
                raise ReloadError(why) from None

    async def serve_too(self, name: str, path: str) -> None:
        """Serve a model that no configuration names, until the server ends. Raises ReloadError."""
        async with self._turn:
            self._beside[name] = path
            if self._catalog.resolve(name) is not None:
                return
            try:
                entry = await self._reader.read("model", lambda: entry_of(self.settings, name, path))
                change = self._catalog.add(entry)
            except (CatalogError, HeaderError, ValueError) as problem:
                del self._beside[name]
                raise ReloadError(str(problem)) from None
            self._pool.change(change, self.settings)

    async def serve_adapter(self, adapter: TunedAdapter) -> None:
        """Serve an adapter that was trained here, from now on and whatever the configuration becomes."""
        async with self._turn:
            self._tuned[adapter.name] = adapter
            self._pool.change(self._catalog.add_adapter(adapter), self.settings)

    async def serve_no_more(self, name: str) -> None:
        """Take away what `serve_too` or `serve_adapter` has added."""
        async with self._turn:
            if (adapter := self._tuned.pop(name, None)) is not None:
                self._pool.change(self._catalog.remove_adapter(adapter), self.settings)
            elif name in self._beside:
                if self._is_beside(name):
                    self._pool.change(self._catalog.remove(name), self.settings)
                del self._beside[name]

    def _is_beside(self, name: str) -> bool:
        """Whether this is the model that was added, and none that the configuration calls so."""
        entry = self._catalog.resolve(name)
        is_same = entry is not None and (entry.name, entry.config.path) == (name, self._beside[name])
        return is_same and name not in self.settings.models

    def _wanted(self) -> tuple[Reading, Catalog]:
        """On a thread: the configuration and the models it names."""
        reading = self._read()
        return reading, Catalog(reading.settings, self._beside, list(self._tuned.values()))

    def _take(self, reading: Reading, wanted: Catalog, asked_by: str) -> Reloaded:
        """All at once: no request sees a half of it."""
        settings, applied, restart = taken_over(self.settings, reading.settings)
        if (why := open_listener(settings)) is not None:
            raise ReloadError(why)
        change = self._catalog.become(wanted)
        self.settings = settings
        self._door.change(settings)
        for name in ("onecard", "server", "backends"):
            logging.getLogger(name).setLevel(settings.logging.level.upper())
        self._adopt(settings)
        self._pool.change(change, settings)
        told = Reloaded(
            added=[entry.name for entry in change.added],
            changed=change.keys,
            reloading=sorted(change.reloads),
            removed=[entry.name for entry in change.removed],
            settings=applied,
            restart=restart,
            missing={entry.name: entry.missing for entry in self._catalog.entries if entry.missing is not None},
            notes=[*reading.notes, *self._catalog.remarks],
        )
        lists = {name: getattr(told, name) for name in ("added", "changed", "removed", "settings", "restart")}
        figures = {name: ",".join(names) for name, names in lists.items() if names}
        self._pool.tell("config_reloaded", by=asked_by, **figures)
        return told


def serve_tuned(reloader: Reloader) -> Callable[[TunedModel], Awaitable[None]]:
    """Serves what a fine-tuning job has made; what cannot be served is told."""

    async def serve(model: TunedModel) -> None:
        try:
            if model.whole:
                await reloader.serve_too(model.name, model.path)
            else:
                await reloader.serve_adapter(TunedAdapter(model.name, model.base, model.path))
        except ReloadError as problem:
            _LOG.warning("tuned_model_unserved name=%s reason=%r", model.name, str(problem))

    return serve
