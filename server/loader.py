"""One load, step by step: look at the file, choose a plan, book its bytes, start the worker.

Owns what is known about the models' files. When to load is the scheduler's business, what happens after is the pool's.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends.footprint import HeaderError, HeaderInfo, inspect
from backends.messages import ErrorCode, LoadModel
from backends.worker import Listener, Timeouts, Worker
from server.ledger import LedgerError
from server.placement import Placed, Refused, Wish, place
from server.sizes import format_size

if TYPE_CHECKING:
    from pathlib import Path

    from server.catalog import CatalogEntry
    from server.config import ModelConfig
    from server.memory import Memory
    from server.spare import Spare

FREE_WITHIN_S: Final = 10.0
"""How long a card may take to give back what an exited worker held."""

_Signature = tuple[int, int, int]


class LoadRefusedError(Exception):
    """A load that did not get as far as a worker. `strike` tells whether it counts as a failure of the model."""

    def __init__(self, code: ErrorCode, message: str, *, strike: bool) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.strike = strike


@dataclass(frozen=True)
class _Known:
    signature: _Signature
    header: HeaderInfo


class Loader:
    """See the module's text."""

    def __init__(self, memory: Memory, timeouts: Timeouts, spare: Spare) -> None:
        self.memory = memory
        self._spare = spare
        self._timeouts = timeouts
        self._known: dict[str, _Known] = {}
        self._problems: dict[str, str] = {}

    def known(self, name: str) -> tuple[HeaderInfo | None, str | None]:
        """What the last look at a model's file gave: its header, or what is wrong with it."""
        known = self._known.get(name)
        return (known.header if known else None), self._problems.get(name)

    async def inspect(self, entry: CatalogEntry) -> HeaderInfo:
        """The header of the model's file, read again when the file has changed. Raises LoadRefusedError."""
        before = self._known.get(entry.name)
        try:
            after = await asyncio.to_thread(_look, entry, before)
        except HeaderError as error:
            self._known.pop(entry.name, None)
            self._problems[entry.name] = str(error)
            raise LoadRefusedError(
                "load_failed", f"model '{entry.name}' cannot be loaded: {error}", strike=True
            ) from None
        self._known[entry.name] = after
        self._problems.pop(entry.name, None)
        return after.header

    async def start(self, entry: CatalogEntry, listener: Listener) -> Worker:
        """Start a worker for the model; its bytes are booked until `memory.ledger.release`. Raises LoadRefusedError."""
        if entry.config.kv_tokens != "auto":
            raise LoadRefusedError(
                "load_failed", f"model '{entry.name}': kv_tokens can only be 'auto' yet", strike=True
            )
        placed = self._place(entry, await self.inspect(entry))
        try:
            self.memory.ledger.reserve(entry.name, placed.footprint)
        except LedgerError as error:
            raise LoadRefusedError("memory_busy", str(error), strike=False) from None
        try:
            await self._wait_for_card(entry.name, placed)
            worker = Worker(_spec(entry, placed), listener, self._timeouts)
            await worker.start(self._spare.take(entry.backend))
        except OSError as error:
            self.memory.ledger.release(entry.name)
            message = f"no worker process could be started: {error.strerror}"
            raise LoadRefusedError("load_failed", message, strike=True) from None
        except BaseException:
            self.memory.ledger.release(entry.name)
            raise
        return worker

    def _place(self, entry: CatalogEntry, header: HeaderInfo) -> Placed:
        ledger = self.memory.ledger
        placed = place(
            entry.name,
            header,
            _wish(entry.config, self.memory),
            budget_bytes=ledger.budget_bytes,
            free_bytes=ledger.free_bytes,
        )
        if isinstance(placed, Refused):
            raise LoadRefusedError(placed.code, placed.message, strike=False)
        return placed

    async def _wait_for_card(self, name: str, placed: Placed) -> None:
        needed_bytes = placed.footprint.total_bytes
        if not await self.memory.wait_for_free(needed_bytes, within_s=FREE_WITHIN_S):
            message = f"{name} needs {format_size(needed_bytes)}, but other programs hold the card's memory"
            raise LoadRefusedError("memory_busy", message, strike=False)


def _look(entry: CatalogEntry, before: _Known | None) -> _Known:
    signature = _signature(entry.path)
    if before is not None and before.signature == signature:
        return before
    return _Known(signature, inspect(entry.backend, entry.path))


def _signature(path: Path) -> _Signature:
    try:
        status = os.stat(path)  # noqa: PTH116 - the tuple below is of this call
    except OSError as error:
        raise HeaderError(f"{path.name} cannot be read: {error.strerror}") from None
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def _wish(config: ModelConfig, memory: Memory) -> Wish:
    return Wish(
        context=None if config.context == "auto" else config.context,
        parallel=config.parallel,
        kv_type=config.kv_type,
        gpu_layers=None if config.gpu_layers == "auto" else config.gpu_layers,
        device=memory.device,
    )


def _spec(entry: CatalogEntry, placed: Placed) -> LoadModel:
    plan = placed.plan
    return LoadModel(
        name=entry.name,
        backend=entry.backend,
        path=str(entry.path),
        context=plan.context,
        parallel=plan.parallel,
        kv_type=plan.kv_type,
        gpu_layers=plan.gpu_layers,
        device=plan.device,
    )
