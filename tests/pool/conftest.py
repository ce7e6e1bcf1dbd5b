"""A pool over real worker processes with the fake engine, its models small files that only a header reader looks at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backends.border.worker import Timeouts
from backends.messages import Delta, Event, Failed, Finished, Generate, Job, TextPrompt
from server.metrics import Metrics
from server.pool.pool import Pool, Stream
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from tests.models import broken

QUICK = Timeouts(load_s=20.0, ping_every_s=0.1, pong_s=1.5, step_s=20.0, stop_s=2.0, linger_s=0.5)
BOUND_S = 20.0


@dataclass
class Rig:
    """One pool with what a test needs around it."""

    pool: Pool
    catalog: Catalog
    metrics: Metrics
    folder: Path
    happened: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    _n: int = 0

    def submit(self, model: str, text: str | Job, **fields: Any) -> Stream:
        entry = self.catalog.resolve(model)
        assert entry is not None
        self._n += 1
        priority = fields.pop("priority", 0)
        job = Generate(f"job{self._n}", TextPrompt(text), **fields) if isinstance(text, str) else text
        return self.pool.submit(entry, job, priority=priority)

    async def ask(self, model: str, text: str | Job, **fields: Any) -> list[Event]:
        return await read(self.submit(model, text, **fields))

    def direct(self, model: str, directive: str) -> None:
        """What the model's fake engine does at its next load."""
        (self.folder / f"{model}.gguf.fake").write_text(directive)

    def names(self) -> list[str]:
        return [what for what, _ in self.happened]

    def pid(self, model: str) -> int:
        (pid,) = (m.pid for m in self.pool.status().models if m.name == model)
        assert pid is not None
        return pid

    def sample(self, name: str, **labels: str) -> float:
        """One figure of the metrics page."""
        self.metrics.render()
        value = self.metrics._registry.get_sample_value(f"onecard_{name}", labels)
        assert value is not None, f"no series {name} {labels}"
        return value


async def read(stream: Stream) -> list[Event]:
    async with asyncio.timeout(BOUND_S):
        events = [event async for event in stream]
    assert isinstance(events[-1], Finished | Failed)
    assert not any(isinstance(event, Finished | Failed) for event in events[:-1]), "more than one terminal event"
    return events


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - some states change without an event
            await asyncio.sleep(0.005)


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed), events[-1]
    return events[-1]


class Maker:
    """Builds rigs and takes them down."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rigs: list[Rig] = []

    async def __call__(
        self,
        *models: str,
        sections: dict[str, dict[str, Any]] | None = None,
        timeouts: Timeouts = QUICK,
        vllm_names: bool = False,
        **config: Any,
    ) -> Rig:
        names = models or ("a",)
        rig = self._build(names, sections or {}, timeouts, config, vllm_names=vllm_names)
        await rig.pool.start()
        self.rigs.append(rig)
        return rig

    def _build(
        self, names: tuple[str, ...], sections: dict[str, Any], timeouts: Timeouts, config: Any, *, vllm_names: bool
    ) -> Rig:
        for name in names:
            (self.folder / f"{name}.gguf").write_bytes(broken.VALID.encode())
        configs = {n: ModelConfig(path=str(self.folder / f"{n}.gguf"), **{"context": 512, **config}) for n in names}
        memory = {"device": "cpu", **sections.pop("memory", {})}
        scheduler = {"template_process": False, **sections.pop("scheduler", {})}
        settings = Settings(models=configs, memory=memory, scheduler=scheduler, **sections)  # type: ignore[arg-type]
        catalog = Catalog(settings)
        metrics = Metrics([entry.name for entry in catalog.entries], vllm_names=vllm_names)
        rig = Rig(Pool(settings, catalog, metrics, timeouts=timeouts), catalog, metrics, self.folder)
        rig.pool.on_change.append(lambda what, figures: rig.happened.append((what, figures)))
        return rig


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Maker]:
    """Make a pool; all of them are closed at the end, and no worker is left."""
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    maker = Maker(tmp_path)
    yield maker
    for rig in maker.rigs:
        await rig.pool.close(0)
        assert all(model.pid is None for model in rig.pool.status().models)
        assert rig.pool.status().memory.reserved_bytes == 0


SLOW = "!slow 20 100000"


async def running(rig: Rig, model: str = "a", prompt: str = SLOW):
    """A stream that has its first token."""
    stream = rig.submit(model, prompt)
    async for event in stream:
        if isinstance(event, Delta):
            return stream
    raise AssertionError("the job ended before its first token")
