"""A long text that is being tokenized holds up no short request of the same model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.messages import ChatPrompt, Finished, Generate, Job, Sampling, TextPrompt, Tokenize
from server.metrics import Metrics
from server.pool.pool import Pool
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection

pytestmark = pytest.mark.engine

LINE = "The quick brown fox, 4711 times, jumps over the lazy dog; and again.\n"
BOUND_S = 60.0


async def test_short_requests_pass_long_ones_that_are_being_prepared(demo_model: Path) -> None:
    config = ModelConfig(path=str(demo_model), context=1024, parallel=2)
    settings = Settings(memory=MemorySection(device="cpu", budget=1 << 30), models={"demo": config})
    catalog = Catalog(settings)
    (entry,) = catalog.entries
    pool = Pool(settings, catalog, Metrics(["demo"], backends=["bnb", "gguf"]))
    await pool.start()
    ended: list[str] = []

    async def run(job: Job) -> None:
        async for event in pool.submit(entry, job):
            if not isinstance(event, Finished):
                continue
            ended.append(job.id)

    chat = ChatPrompt(messages=[{"role": "user", "content": "What is the capital of France?"}])
    longest, long = (Tokenize(name, TextPrompt(LINE * n)) for name, n in (("longest", 9_000), ("long", 6_000)))
    short = Generate("short", chat, sampling=Sampling(temperature=0.0), max_tokens=2)
    try:
        async with asyncio.timeout(BOUND_S):
            await pool.load("demo")
            await asyncio.gather(*map(run, (longest, long, short, Tokenize("tiny", TextPrompt("a b c")))))
    finally:
        await pool.close(0)

    assert sorted(ended[:2]) == ["short", "tiny"], "short ones were held up"
    assert sorted(ended[2:]) == ["long", "longest"]
