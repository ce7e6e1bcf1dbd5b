"""Which models can be taught, and what a training of them takes, as the catalogue and the memory have it now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.tuning.estimate import disk_of, estimate_of
from server.tuning.job import JobError
from server.tuning.preparing import Base, UnfitError
from server.tuning.recipe import Machine

if TYPE_CHECKING:
    from server.pool.pool import Pool
    from server.settings.catalog import Catalog


class Bases:
    """Of one pool."""

    def __init__(self, pool: Pool, catalog: Catalog) -> None:
        self._pool = pool
        self._catalog = catalog

    async def find(self, name: str) -> Base:
        """The model of this name, its files looked at. Raises UnfitError."""
        entry = self._catalog.resolve(name)
        if entry is None:
            raise UnfitError(JobError("model_not_found", f"The model '{name}' is not configured any more.", "model"))
        await self._pool.look(entry.name)
        info = self._pool.info(entry.name)
        if info.header is None:
            told = f"The model '{name}' cannot be taught: {info.unusable or 'its files were not read'}"
            raise UnfitError(JobError("model_unusable", told, "model"))
        if (why := untaught(entry.path.is_dir(), info.header.gives)) is not None:
            raise UnfitError(JobError("model_not_trainable", f"The model '{name}' {why}", "model"))
        return Base(entry.path, info.header.n_ctx_train, estimate_of(info.header), disk_of(info.header))

    def machine(self) -> Machine:
        """Where it is trained, and what it may take there."""
        return Machine(self._pool.training.device, self._pool.training.budget)


def untaught(is_folder: bool, gives: str) -> str | None:
    """Why a model cannot be taught, as half a sentence; None where it can."""
    if not is_folder:
        hint = "name a model whose path is the folder it was made from"
        return f"is no Hugging Face folder, and nothing else can be taught. hint: {hint}"
    if gives != "text":
        return "writes no text, and only models that do can be taught."
    return None
