"""Models that only the engine can judge: whether the worker says why or dies, its handle has a sentence in seconds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backends.border.worker import Exit, Worker
from backends.messages import Ready, Step
from tests.models import broken
from tests.specs import spec_of

IN_THE_MODEL = [case for case in broken.TABLE if case.judge == "engine"]
REFUSAL_S = 5


@dataclass
class Watcher:
    """Keeps what the handle reports."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ready: bool = False
    how: Exit | None = None

    def on_progress(self, worker: Worker, fraction: float) -> None:
        """Not looked at."""

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        self.ready = True
        self.ended.set()

    def on_step(self, worker: Worker, step: Step) -> None:
        """Nothing is ever run."""

    def on_keeps(self, worker: Worker, max_bytes: int) -> None:
        """Nothing is kept."""

    def on_exit(self, worker: Worker, how: Exit) -> None:
        self.how = how
        self.ended.set()


@pytest.mark.engine
@pytest.mark.parametrize("case", IN_THE_MODEL, ids=lambda case: case.name)
async def test_worker_fails_with_a_sentence(case: broken.Broken, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(case.make())
    watcher = Watcher()
    spec = spec_of(name="broken", backend="gguf", path=str(path), context=256, parallel=1, threads=1)
    worker = Worker(spec, watcher)

    await worker.start()
    try:
        await asyncio.wait_for(watcher.ended.wait(), REFUSAL_S)
    finally:
        await worker.stop()

    assert not watcher.ready
    assert watcher.how is not None
    assert watcher.how.code in {"load_failed", "worker_crashed"}
    assert len(watcher.how.message.split()) >= 4
    assert str(tmp_path) not in watcher.how.message
