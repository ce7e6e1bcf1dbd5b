"""Many models under an artificial budget: real worker processes, a fake engine, files of any size that hold nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.messages import Event, Failed, Finished
from server.metrics import Metrics
from server.pool.pool import Pool
from server.scheduling.scheduler import Rules
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from tests.models import broken
from tests.pool.conftest import QUICK, Rig, read

MIB = 2**20
BIG = 300
"""MiB of an ordinary model here."""


def write_model(path: Path, size_mib: int) -> None:
    """A file whose header announces so many bytes of weights, which are a hole."""
    rows = size_mib * MIB // 128
    raw = replace(broken.VALID, tensors=(broken.tensor(b"token_embd.weight", (32, rows)),), data=b"")
    path.write_bytes(raw.encode())
    with path.open("r+b") as file:
        file.truncate(len(raw.encode()) + size_mib * MIB)
    path.with_name(path.name + ".fake").write_text(f"bytes {size_mib * MIB}")


class Fleet(Rig):
    """A rig with what tests of many models ask."""

    def events(self, what: str) -> list[dict[str, object]]:
        return [figures for name, figures in self.happened if name == what]

    def loads(self) -> int:
        return len(self.events("loading"))

    async def ask_all(self, *requests: tuple[str, str]) -> list[list[Event]]:
        """Send all at once, in this order, and read every answer."""
        return await asyncio.gather(*(read(self.submit(model, text)) for model, text in requests))

    def state(self, model: str) -> str:
        return next(m.state for m in self.pool.status().models if m.name == model)


class FleetMaker:
    """Builds pools of sized models and takes them down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fleets: list[Fleet] = []

    async def __call__(
        self,
        sizes_mib: dict[str, int],
        *,
        budget_mib: int,
        each: dict[str, dict[str, Any]] | None = None,
        sections: dict[str, dict[str, Any]] | None = None,
        rules: Rules | None = None,
    ) -> Fleet:
        for name, size in sizes_mib.items():
            write_model(self.folder / f"{name}.gguf", size)
        configs = {
            name: ModelConfig(path=str(self.folder / f"{name}.gguf"), **{"context": 512, **(each or {}).get(name, {})})
            for name in sizes_mib
        }
        given = {"scheduler": {"template_process": False}, **(sections or {})}
        memory = {"device": "cpu", "budget": budget_mib * MIB, **given.pop("memory", {})}
        settings = Settings(models=configs, memory=memory, **given)  # type: ignore[arg-type]
        catalog = Catalog(settings)
        metrics = Metrics([entry.name for entry in catalog.entries])
        fleet = Fleet(Pool(settings, catalog, metrics, timeouts=QUICK, rules=rules), catalog, metrics, self.folder)
        fleet.pool.on_change.append(lambda what, figures: fleet.happened.append((what, figures)))
        await fleet.pool.start()
        self.fleets.append(fleet)
        return fleet


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[FleetMaker]:
    """Make a pool of sized models; all of them are closed at the end, and nothing is booked any more."""
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    maker = FleetMaker(tmp_path)
    yield maker
    for made in maker.fleets:
        await made.pool.close(0)
        assert made.pool.status().memory.reserved_bytes == 0


def ok(events: list[Event]) -> bool:
    return isinstance(events[-1], Finished)


def code(events: list[Event]) -> str:
    assert isinstance(events[-1], Failed), events[-1]
    return events[-1].code
