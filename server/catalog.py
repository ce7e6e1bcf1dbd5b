"""Which models there are: names and aliases to resolved files, fixed at start.

Lookups are dict lookups; a name from a client never reaches the file system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from server.config import ModelConfig
from server.references import DEMO, Located, LocateError, locate

if TYPE_CHECKING:
    from pathlib import Path

    from server.config import Settings


class CatalogError(Exception):
    """A configured model that cannot be found or is not what it should be; the text is a sentence for the operator."""


@dataclass(frozen=True)
class CatalogEntry:
    """One servable model."""

    name: str
    config: ModelConfig
    backend: Literal["gguf", "bnb"]
    path: Path
    """The resolved `.gguf` file (the first part of a split one) or model folder."""
    aliases: tuple[str, ...]
    size_bytes: int
    """Bytes of the weights on disk."""


class Catalog:
    """The configured models, or the built-in `demo` where none is configured."""

    def __init__(self, settings: Settings) -> None:
        """Resolve every model's files. Raises CatalogError."""
        models = settings.models or {DEMO: _demo_config(settings)}
        self._entries = {name: _entry(model) for name, model in models.items()}
        aliases = {alias: entry for entry in self._entries.values() for alias in entry.aliases}
        self._by_name = {**aliases, **self._entries}
        if absent := [name for name in settings.scheduler.preload if name not in self._by_name]:
            known = ", ".join(self._entries)
            raise CatalogError(
                f"scheduler.preload names '{absent[0]}', which is no model. hint: the models are {known}"
            )

    @property
    def entries(self) -> list[CatalogEntry]:
        """All models in the order they were configured."""
        return list(self._entries.values())

    def resolve(self, name: str) -> CatalogEntry | None:
        """The model a client means by a name or alias; None when there is none."""
        return self._by_name.get(name)


def _demo_config(settings: Settings) -> ModelConfig:
    """The built-in model with the operator's defaults."""
    folded = type(settings)(
        defaults=settings.defaults, scheduler=settings.scheduler, models={DEMO: ModelConfig(path=DEMO)}
    )
    return folded.models[DEMO]


def _entry(model: ModelConfig) -> CatalogEntry:
    try:
        located: Located = locate(model.path)
    except LocateError as problem:
        raise CatalogError(f"model '{model.name}': {problem}") from None
    if model.backend not in ("auto", located.backend):
        what = (
            "a GGUF file, which backend gguf serves"
            if located.backend == "gguf"
            else "a model folder, which backend bnb serves"
        )
        raise CatalogError(
            f"model '{model.name}': backend = '{model.backend}' but {located.path} is {what}. hint: leave backend out"
        )
    return CatalogEntry(
        name=model.name,
        config=model,
        backend=located.backend,
        path=located.path,
        aliases=tuple(model.aliases),
        size_bytes=located.size_bytes,
    )
