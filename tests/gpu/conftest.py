"""Pools on a real card, models large enough to matter there, and a program that takes the card's memory away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.messages import ChatPrompt, Delta, Event, Generate, Sampling
from bench import random_q4
from bench.model import Shape
from server.metrics import Metrics
from server.pool.pool import Pool
from server.pool.status import ModelStatus
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection, SchedulerSection
from tests.present import present

DEVICE = "cuda"
BUDGET = "12GiB"
HUNGRY = Shape(n_layers=16, n_embd=2048, n_heads=16, n_heads_kv=16, n_ff=5632, n_vocab=4096)
"""Half a GiB of weights, 128 KiB of KV cache per token."""
HOG = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status:
        sys.exit(f"{name}: {status}")
context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
free, total = ctypes.c_size_t(), ctypes.c_size_t()
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(free.value - int(sys.argv[1])))
print("taken", flush=True)
sys.stdin.read()
"""


@dataclass
class Rig:
    """One running pool."""

    pool: Pool
    catalog: Catalog

    async def loaded(self, name: str) -> ModelStatus:
        await self.pool.load(name)
        return self.status(name)

    def status(self, name: str) -> ModelStatus:
        return next(model for model in self.pool.status().models if model.name == name)

    async def ask(self, name: str, question: str) -> tuple[str, Event]:
        """The answer's text, and what ended it."""
        entry = self.catalog.resolve(name)
        assert entry is not None
        prompt = ChatPrompt([{"role": "user", "content": question}])
        job = Generate(f"job-{name}", prompt, sampling=Sampling(temperature=0.0), max_tokens=24)
        events = [event async for event in self.pool.submit(entry, job)]
        return "".join(event.text for event in events if isinstance(event, Delta)), events[-1]


Start = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start a pool over these models; the one before it ends, as servers that follow each other do."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    running: list[Pool] = []

    async def _start(models: dict[str, ModelConfig], **memory: object) -> Rig:
        while running:
            await running.pop().close(0)
        settings = Settings(
            models=models,
            scheduler=SchedulerSection(min_residency_s=0),
            memory=MemorySection.model_validate({"device": DEVICE, "budget": BUDGET, **memory}),
        )
        catalog = Catalog(settings)
        pool = Pool(settings, catalog, Metrics(list(models)))
        await pool.start()
        running.append(pool)
        return Rig(pool, catalog)

    yield _start
    while running:
        await running.pop().close(0)


@pytest.fixture(scope="session")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and a large KV cache."""
    path = tmp_path_factory.mktemp("hungry") / "hungry.gguf"
    random_q4.write(path, HUNGRY)
    return path


@pytest.fixture
def taken() -> Callable[[int], AbstractContextManager[None]]:
    """Another program holds the card's memory but for so many bytes."""

    @contextmanager
    def _taken(left_bytes: int) -> Iterator[None]:
        command = [sys.executable, "-c", HOG, str(left_bytes)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert present(process.stdout).readline() == "taken\n"
            try:
                yield
            finally:
                present(process.stdin).close()
                process.wait(20)

    return _taken
