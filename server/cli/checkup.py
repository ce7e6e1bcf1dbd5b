"""Which configured models cannot be served, and why, before a client finds out.

Owns no rule: files are judged by the header readers, room by the pool's own plan of a load.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backends.backend import HeaderError
from backends.registry import BACKENDS
from server.memory.budget import likely_plans, wish
from server.memory.capacity import WishChange
from server.memory.estimator import Estimator
from server.memory.files import look

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from server.memory.files import FileFacts
    from server.pool.pool import Pool
    from server.settings.catalog import CatalogEntry


def broken(entries: Iterable[CatalogEntry]) -> dict[str, str]:
    """Models that could not be loaded, with the sentence. Reads every header, and lets engines load without weights."""
    found, looked = {}, {}
    for entry in entries:
        try:
            looked[entry.name] = entry, look(entry)
        except HeaderError as problem:
            found[entry.name] = str(problem)
    return {**found, **asyncio.run(_refused(looked))}


async def _refused(looked: Mapping[str, tuple[CatalogEntry, FileFacts]]) -> dict[str, str]:
    """Sound files that the engine refuses in a dry load."""
    estimator = Estimator()
    logging.getLogger("onecard.dry").addHandler(logging.NullHandler())  # a child that fails tells nothing of a file
    await estimator.ask_dry([(seen, likely_plans(seen, wish(e.config, "cpu"))[:1]) for e, seen in looked.values()])
    refused = {name: estimator.refused.get(seen.key) for name, (_, seen) in looked.items()}
    return {name: why for name, why in refused.items() if why is not None}


def without_engine(entries: Iterable[CatalogEntry]) -> dict[str, str]:
    """Models this version has no engine for."""
    return {e.name: f"this version has no '{e.backend}' backend" for e in entries if e.backend not in BACKENDS}


@dataclass(frozen=True)
class Checkup:
    """What a look at all models has given, by their names."""

    unusable: dict[str, str] = field(default_factory=dict)
    """Those that are broken or fit into no plan of the budget, with the sentence."""
    gives: dict[str, str] = field(default_factory=dict)
    """`text`, `vectors` or `scores`, of those whose files could be read."""
    remarks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the files say otherwise than they are served, and what the table asks for in vain."""


def without_engines(entries: Iterable[CatalogEntry]) -> Checkup:
    """What is known before any file is read."""
    return Checkup(without_engine(entries))


async def look_over(pool: Pool, entries: Iterable[CatalogEntry], found: Checkup) -> Checkup:
    """Look at the models of a started pool, and put what comes into `found`, model by model."""
    for entry in entries:
        try:
            plan = await pool.capacity(entry.name, WishChange())
        except HeaderError as problem:
            found.unusable[entry.name] = str(problem)
        else:
            found.gives[entry.name] = plan.gives
            await pool.look(entry.name)
            header = pool.info(entry.name).header
            if remarks := dict.fromkeys((*(() if header is None else header.remarks), *plan.notes)):
                found.remarks[entry.name] = tuple(remarks)
            if not plan.fits:
                found.unusable[entry.name] = plan.reason or "it does not fit into the budget"
    return found
