"""The demo model under several names and an artificial budget, with the real engine."""

from __future__ import annotations

import asyncio

import pytest

from backends.messages import Finished, Generate, Sampling, TextPrompt
from bench import trace
from demo import GGUF_PATH
from server.metrics import Metrics
from server.pool.pool import Pool
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection

pytestmark = pytest.mark.engine


def test_five_tiny_models_with_room_for_two_are_served_in_runs() -> None:
    outcome = trace.run(trace.tiny(60))
    assert outcome.errors == []
    assert outcome.n_loads <= 20
    assert outcome.most_over_bytes <= 0
    assert len(outcome.unreserved) == outcome.n_loads
    assert max(outcome.unreserved) <= 0.1, "the workers hold more than is reserved for them"
    assert max(outcome.waits_s) <= 10.0


def test_alternating_clients_wait_less_than_first_come_first_served() -> None:
    ours, fifo = (trace.run(trace.alternating(30), policy) for policy in ("collate", "fifo"))
    assert ours.errors == fifo.errors == []
    assert ours.n_loads < fifo.n_loads
    assert sum(ours.waits_s) < sum(fifo.waits_s)


async def test_clients_with_different_wishes_for_context_cause_no_reload() -> None:
    settings = Settings(
        memory=MemorySection(device="cpu", budget=2**30),
        models={"a": ModelConfig(path=str(GGUF_PATH), context=512)},
    )
    catalog = Catalog(settings)
    pool = Pool(settings, catalog, Metrics(["a"]))
    happened: list[str] = []
    pool.on_change.append(lambda what, _: happened.append(what))
    await pool.start()
    entry = catalog.resolve("a")
    assert entry is not None

    async def client(number: int) -> None:
        for turn in range(4):
            job = Generate(
                f"{number}-{turn}",
                TextPrompt("Once " * (1 + 20 * (number % 2))),
                sampling=Sampling(temperature=0.0),
                max_tokens=4 if number % 2 else 32000,
                stop=["."],
            )
            events = [event async for event in pool.submit(entry, job)]
            assert isinstance(events[-1], Finished)

    try:
        await asyncio.wait_for(asyncio.gather(client(0), client(1)), 120)
        assert happened.count("loading") == 1
    finally:
        await pool.close(0)
    assert pool.status().memory.reserved_bytes == 0
