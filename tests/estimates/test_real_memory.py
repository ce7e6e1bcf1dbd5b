"""Real workers under a real pool: reservations cover what the kernel says, the second estimate beats the first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.machine import host
from backends.messages import Failed, Finished, Generate, TextPrompt
from demo import GGUF_PATH
from server.metrics import Metrics
from server.pool.pool import Pool
from server.pool.status import ModelStatus
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import SchedulerSection

pytestmark = pytest.mark.engine

MIB = 2**20
Start = Callable[[], "asyncio.Future[Pool]"]


@pytest.fixture(params=[True, False], ids=["copies", "new processes"])
def settings(canary_path: Path, request: pytest.FixtureRequest) -> Settings:
    models = {
        "demo": ModelConfig(path=str(GGUF_PATH), context=2048),
        "canary": ModelConfig(path=str(canary_path), context=2048, parallel=4, kv_type="f32"),
    }
    return Settings(models=models, scheduler=SchedulerSection(template_process=request.param), memory={"device": "cpu"})  # type: ignore[arg-type]


class Pools:
    """Starts pools over the same models, as servers that follow each other do."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._running: list[Pool] = []
        self.catalog = Catalog(settings)

    async def start(self) -> Pool:
        await self.stop()
        pool = Pool(self._settings, self.catalog, Metrics([entry.name for entry in self.catalog.entries]))
        await pool.start()
        self._running.append(pool)
        return pool

    async def stop(self) -> None:
        while self._running:
            await self._running.pop().close(0)


@pytest.fixture
async def pools(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pools]:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    made = Pools(settings)
    yield made
    await made.stop()


async def loaded(pool: Pool, name: str) -> ModelStatus:
    async with asyncio.timeout(60):
        await pool.load(name)
    return next(model for model in pool.status().models if model.name == name)


async def test_first_price_is_close_and_the_second_closer(pools: Pools) -> None:
    pool = await pools.start()
    first = {name: await loaded(pool, name) for name in ("demo", "canary")}
    pool = await pools.start()
    second = {name: await loaded(pool, name) for name in ("demo", "canary")}

    for name in ("demo", "canary"):
        cold, learned = first[name].prediction_error, second[name].prediction_error
        assert cold is not None
        assert learned is not None
        assert abs(cold) <= 0.06
        assert abs(learned) <= 0.03


async def test_booking_covers_what_the_process_holds_when_its_buffers_are_used(pools: Pools) -> None:
    pool = await pools.start()
    held = 0
    for name, prompt in (("demo", "The capital of France is Paris. " * 150), ("canary", "a b c " * 300)):
        status = await loaded(pool, name)
        assert status.pid is not None
        await fill(pool, pools.catalog, name, prompt)
        entry = pools.catalog.resolve(name)
        assert entry is not None
        held += host.anonymous_bytes(status.pid) + status.parts["weights"] - repacked_bytes(entry.path)

    booked = pool.status().memory.reserved_bytes
    assert abs(booked - held) <= 0.08 * held
    assert held <= booked + 4 * MIB


def repacked_bytes(path: Path) -> int:
    """Weights that this processor wants in another order: anonymous memory, and never read from the file again."""
    log = LibraryLog()
    log.install()
    Model(path, gpu_layers=0, log=log).close()
    return log.repacked_bytes()


async def fill(pool: Pool, catalog: Catalog, name: str, prompt: str) -> None:
    """Have every buffer of a model used: each of its sequences with a long prompt."""
    entry = catalog.resolve(name)
    assert entry is not None
    async with asyncio.timeout(60):
        jobs = [Generate(f"{name}{i}", TextPrompt(f"{i} {prompt}"), max_tokens=8) for i in range(2)]
        for stream in [pool.submit(entry, job) for job in jobs]:
            events = [event async for event in stream]
            assert isinstance(events[-1], Finished), events[-1] if isinstance(events[-1], Failed) else None
