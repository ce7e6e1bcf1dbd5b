"""Which models there are: names and aliases to resolved files, as the configuration has them now.

Lookups are dict lookups; a name from a client never reaches the file system. A model whose files are missing or broken
stops no other: it is there, and a request for it is answered with the sentence that says why. Once its files are in
their place, or in the cache for a reference, it is served. What contradicts itself in the configuration is a
CatalogError. The commands decide more strictly: `--model` with a path that is not there and `config check` end with
exit code 2.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from backends.backend import DRAFT, MTP
from backends.registry import BACKENDS
from server.settings.builtin import SERVED, built_in_path, options_of, why_missing
from server.settings.changes import AT_ONCE, differing_keys
from server.settings.config import TUNED, ModelConfig, adapter_name
from server.settings.drafts import drafts_among
from server.settings.named_models import CatalogError, refuse_misspelled, remarks_on
from server.settings.references import Located, LocateError, adapter_place, locate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from backends.backend import AnyBackend, Setting
    from server.settings.config import Settings


_FOUND_WITHIN_S = 5.0


@dataclass
class CatalogEntry:
    """One servable model. Its `files` change when they come or move, all of it when the configuration does."""

    name: str
    config: ModelConfig
    files: Located
    """Where they are; where they would be, if missing."""
    missing: str | None = None
    """Why the files could not be used at first; None when they could."""
    draft: CatalogEntry | None = None
    """The model that drafts for it; None: none does."""
    _changing: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def aliases(self) -> tuple[str, ...]:
        """Its other names."""
        return tuple(self.config.aliases)

    def called(self, adapter: str = "") -> list[str]:
        """Every name that keys may have for it, or for one of its adapters: who may use a model may use those."""
        names = [self.name, *self.aliases]
        return [*(adapter_name(name, adapter) for name in names), *names] if adapter else names

    @property
    def backend(self) -> str:
        """The name of the one that serves it."""
        return self.files.backend

    @property
    def path(self) -> Path:
        """The resolved `.gguf` file (the first part of a split one) or model folder."""
        return self.files.path

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk; 0 for a missing model."""
        return self.files.size_bytes

    @property
    def own_options(self) -> dict[str, Setting]:
        """Its backend's own keys: as they were written down, else as a built-in model wants them."""
        return {**options_of(self.config.path), **self.config.options_of(self.backend)}

    @property
    def options(self) -> dict[str, Setting]:
        """What its backend is told beside the files: its own keys, and the model that drafts."""
        own = self.own_options
        if self.config.speculation == "mtp":
            return {**own, MTP: self.config.is_own("speculation")}
        if self.draft is None:
            return own
        of_draft = self.draft.own_options
        return {**own, DRAFT: str(self.draft.path), **{f"{DRAFT}.{key}": value for key, value in of_draft.items()}}

    def still_missing(self) -> str | None:
        """Why its files cannot be used now; None when they can, wherever they are by now. Blocks on the disk."""
        config = self.config
        if self.missing is None and self.path.exists():
            return None
        try:
            located = locate(config.path)
        except LocateError as problem:
            return str(problem)
        if (refused := config.of_other_backend(located.backend)) is not None:
            return _not_of(*refused, located.path, BACKENDS[located.backend])
        if config.backend not in ("auto", located.backend):
            return _another_backend(config.backend, located)
        with self._changing:
            if config is self.config:  # else what was found is of another configuration
                self.files = located
        return None

    def configured_as(self, other: CatalogEntry) -> CatalogEntry:
        """What this one is as the other one. Files that were there and are not found any more stay what they were."""
        is_lost = other.missing is not None and self.missing is None and self.config.path == other.config.path
        return replace(other, files=self.files, missing=None) if is_lost else other

    def become(self, other: CatalogEntry) -> None:
        """Be what the other one is."""
        with self._changing:
            self.config, self.files, self.missing = other.config, other.files, other.missing


@dataclass(frozen=True)
class TunedAdapter:
    """An adapter that a fine-tuning job has made."""

    name: str
    """Its whole name."""
    base: str
    path: str


@dataclass
class CatalogChange:
    """What became of the models when the configuration changed."""

    added: list[CatalogEntry] = field(default_factory=list)
    changed: list[CatalogEntry] = field(default_factory=list)
    removed: list[CatalogEntry] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)
    """What of a changed model is other than before."""
    reloads: set[str] = field(default_factory=set)
    """Changed models that have to be loaded anew."""


class Catalog:
    """The configured models, or the built-in ones where none is configured."""

    def __init__(
        self, settings: Settings, beside: Mapping[str, str] | None = None, tuned: Iterable[TunedAdapter] = ()
    ) -> None:
        """Look for every model's files. Raises CatalogError.

        `beside` has paths of models that no configuration names; a name that is configured stays the configuration's.
        `tuned` adapters are served with those of their bases that are there.
        """
        built_in = [] if settings.models else [name for name in SERVED if built_in_path(name) is not None]
        self._built_in_missing = [why_missing(name) for name in SERVED if built_in and name not in built_in]
        models = settings.models or _with_defaults(settings, {name: name for name in built_in or SERVED})
        taken = {alias for name, model in models.items() for alias in (name, *model.aliases)}
        models = {**models, **_with_defaults(settings, {n: p for n, p in (beside or {}).items() if n not in taken})}
        self._hold({name: _entry(model) for name, model in models.items()}, settings)
        for adapter in tuned:
            self.add_adapter(adapter)
        refuse_misspelled(settings, self._knows, listed=", ".join(self.names))

    @property
    def unknown_names(self) -> list[str]:
        """A sentence for each of the names of the configuration that are no model now."""
        return [*remarks_on(self._settings, self._knows), *self._undrafted.values()]

    @property
    def remarks(self) -> list[str]:
        """What an operator should know at start: these, and built-in models that are not there."""
        return [*self._built_in_missing, *self.unknown_names]

    def become(self, other: Catalog) -> CatalogChange:
        """Have the other's models. Those that stay are the same objects, which tell what they are now.

        Raises CatalogError, and nothing has changed.
        """
        before, change = self._entries, CatalogChange()
        wanted = {
            name: before[name].configured_as(entry) if name in before else entry
            for name, entry in other._entries.items()
        }
        drafts, _ = drafts_among(wanted, _by_name(wanted), other._settings)
        change.removed = [entry for name, entry in before.items() if name not in wanted]
        for name, after in wanted.items():
            entry = before.get(name)
            if entry is None:
                change.added.append(after)
                continue
            keys = differing_keys(entry.config, after.config)
            elsewhere = after.missing is None and after.path != entry.path
            drafted = _path(drafts.get(name)) != _path(entry.draft)
            if keys or elsewhere or drafted:
                change.changed.append(entry)
                change.keys[name] = keys or ["path" if elsewhere else "speculation"]
                if elsewhere or drafted or not AT_ONCE.issuperset(keys):
                    change.reloads.add(name)
        for name, after in wanted.items():  # only now: a model's draft is told by what it was before
            if name in before:
                before[name].become(after)
        self._hold({name: before.get(name, after) for name, after in wanted.items()}, other._settings)
        self._built_in_missing = other._built_in_missing
        return change

    def add(self, entry: CatalogEntry) -> CatalogChange:
        """Have one model more. Raises CatalogError, and nothing has changed."""
        self._hold({**self._entries, entry.name: entry}, self._settings)
        return CatalogChange(added=[entry])

    def remove(self, name: str) -> CatalogChange:
        """Have one model less. Raises CatalogError, and nothing has changed."""
        entry = self._entries[name]
        self._hold({other: held for other, held in self._entries.items() if other != name}, self._settings)
        return CatalogChange(removed=[entry])

    def add_adapter(self, adapter: TunedAdapter) -> CatalogChange:
        """Serve an adapter that was trained here; nothing changes where its base is not there."""
        return self._with_adapters(adapter.base, lambda adapters: {**adapters, adapter.name: adapter.path})

    def remove_adapter(self, adapter: TunedAdapter) -> CatalogChange:
        """Serve it no more."""
        return self._with_adapters(
            adapter.base, lambda adapters: {name: path for name, path in adapters.items() if name != adapter.name}
        )

    def _with_adapters(self, base: str, change: Callable[[dict[str, str]], dict[str, str]]) -> CatalogChange:
        entry = self._entries.get(base)
        if entry is None or (adapters := change(entry.config.adapters)) == entry.config.adapters:
            return CatalogChange()
        preload = entry.config.preload or not set(adapters).isdisjoint(self._settings.scheduler.preload)
        entry.config = entry.config.with_keys(adapters=adapters, preload=preload)
        self._hold(self._entries, self._settings)
        return CatalogChange(changed=[entry], keys={base: ["adapters"]}, reloads={base})

    def _hold(self, entries: dict[str, CatalogEntry], settings: Settings) -> None:
        """Have these, each with the model that drafts for it. Raises CatalogError before anything has changed."""
        by_name = _by_name(entries)
        drafts, self._undrafted = drafts_among(entries, by_name, settings)
        self._entries, self._by_name, self._settings = entries, by_name, settings
        self._tuned = {
            name: entry for entry in entries.values() for name in entry.config.adapters if name.startswith(TUNED)
        }
        for entry in entries.values():
            entry.draft = drafts.get(entry.name)

    @property
    def entries(self) -> list[CatalogEntry]:
        """All models in the order they were configured."""
        return list(self._entries.values())

    @property
    def backends(self) -> set[str]:
        """Those that may serve a model: all of them where files are missing, which may come later and be of any."""
        return set(BACKENDS) if any(entry.missing for entry in self.entries) else {e.backend for e in self.entries}

    def resolve(self, name: str) -> CatalogEntry | None:
        """The model a client means by a name or alias, of an adapter's its base; None when there is none."""
        return self.find(name)[0]

    def _knows(self, name: str) -> bool:
        return self.resolve(name) is not None

    def find(self, name: str) -> tuple[CatalogEntry | None, str]:
        """The model behind a name or alias, and the adapter that `MODEL:ADAPTER` names; no model where none is meant.

        The base may be named by an alias.
        """
        if (entry := self._by_name.get(name)) is not None:
            return entry, ""
        if (entry := self._tuned.get(name)) is not None:
            return entry, name
        base, _, adapter = name.rpartition(":")
        entry = self._by_name.get(base)
        return (entry, adapter) if entry is not None and adapter in entry.config.adapters else (None, "")

    @property
    def names(self) -> list[str]:
        """Every model's name, each with its adapters' behind it."""
        return [name for e in self.entries for name in (e.name, *(adapter_name(e.name, a) for a in e.config.adapters))]


def _by_name(entries: Mapping[str, CatalogEntry]) -> dict[str, CatalogEntry]:
    """With those by their aliases."""
    return {**{alias: entry for entry in entries.values() for alias in entry.aliases}, **entries}


def _path(entry: CatalogEntry | None) -> Path | None:
    return None if entry is None else entry.path


def entry_of(settings: Settings, name: str, path: str) -> CatalogEntry:
    """A model that no configuration names. Blocks on the disk. Raises CatalogError."""
    return _entry(_with_defaults(settings, {name: path})[name])


def _with_defaults(settings: Settings, paths: Mapping[str, str]) -> dict[str, ModelConfig]:
    """Models of which only the path is known, with the operator's defaults."""
    models = {name: ModelConfig(path=path) for name, path in paths.items()}
    return type(settings)(defaults=settings.defaults, scheduler=settings.scheduler, models=models).models


def _entry(model: ModelConfig) -> CatalogEntry:
    try:
        located: Located = _in_time(lambda: locate(model.path))
    except LocateError as problem:
        return _missing(model, str(problem))
    backend = BACKENDS[located.backend]
    if model.backend not in ("auto", located.backend):
        raise CatalogError(f"model '{model.name}': {_another_backend(model.backend, located)}")
    if (refused := model.of_other_backend(backend.name)) is not None:
        raise CatalogError(f"model '{model.name}': {_not_of(*refused, located.path, backend)}")
    return CatalogEntry(model.name, _with_adapters_located(model), located)


def _with_adapters_located(model: ModelConfig) -> ModelConfig:
    """Adapters that are references as folders of the local cache, where they are there."""
    places = {name: adapter_place(path) for name, path in model.adapters.items()}
    return model.with_keys(adapters=places) if places != model.adapters else model


def _in_time(find: Callable[[], Located]) -> Located:
    """What it finds, unless the disk does not answer: the start of the server waits for no disk. Raises LocateError."""
    found: queue.SimpleQueue[Located | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            found.put(find())
        except BaseException as error:  # raised below
            found.put(error)

    threading.Thread(target=run, name="model-files", daemon=True).start()
    try:
        outcome = found.get(timeout=_FOUND_WITHIN_S)
    except queue.Empty:
        told = f"its files could not be looked at within {_FOUND_WITHIN_S:g} s: their disk does not answer"
        raise LocateError(told) from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _another_backend(asked: str, located: Located) -> str:
    """Why the configured backend cannot serve the files."""
    backend = BACKENDS[located.backend]
    return (
        f"backend = '{asked}' but {located.path} is {backend.files}, which backend {backend.name} serves. "
        "hint: leave backend out"
    )


def _not_of(key: str, why: str, path: Path, backend: AnyBackend) -> str:
    """Why a key of the model's table cannot be kept."""
    return f"it has {key}, but {path} is {backend.files}, {why}. hint: leave {key} out"


def _missing(model: ModelConfig, problem: str) -> CatalogEntry:
    backend = next(backend.name for backend in BACKENDS.values() if backend.claims(model.path))
    expected = backend if model.backend == "auto" else model.backend
    return CatalogEntry(model.name, model, Located(Path(model.path).expanduser(), expected, 0), problem)
