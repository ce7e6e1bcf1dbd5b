"""Real worker processes around the fake engine, and a listener that remembers what it heard."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from backends.border.child import Copier
from backends.border.worker import Exit, Timeouts, Worker
from backends.messages import Event, Failed, Finished, Generate, Ready, Step, TextPrompt
from tests.specs import spec_of

QUICK = Timeouts(load_s=20.0, ping_every_s=0.1, pong_s=1.5, step_s=20.0, stop_s=2.0, linger_s=0.5)
BOUND_S = 20.0


class Ear:
    """Remembers what a worker reported; every wait is bounded."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.progress: list[float] = []
        self.keeps: list[int] = []
        self.ready: Ready | None = None
        self.how: Exit | None = None
        self.n_exits = 0
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def on_progress(self, worker: Worker, fraction: float) -> None:
        self.progress.append(fraction)
        self._tell()

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        self.ready = ready
        self._tell()

    def on_step(self, worker: Worker, step: Step) -> None:
        self.events += step.events
        self._tell()

    def on_keeps(self, worker: Worker, max_bytes: int) -> None:
        self.keeps.append(max_bytes)
        self._tell()

    def on_exit(self, worker: Worker, how: Exit) -> None:
        self.n_exits += 1
        self.how = how
        self.events += how.failed
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self._changed:
                self._changed.notify_all()

        task = asyncio.ensure_future(tell())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_S), self._changed:
            await self._changed.wait_for(condition)

    async def until_exit(self) -> Exit:
        await self.until(lambda: self.how is not None)
        assert self.how is not None
        return self.how

    async def until_text(self, job_id: str) -> None:
        await self.until(lambda: bool(self.text(job_id)))

    async def terminal(self, job_id: str) -> Finished | Failed:
        await self.until(lambda: bool(self.terminals(job_id)))
        (only,) = self.terminals(job_id)
        return only

    def terminals(self, job_id: str) -> list[Finished | Failed]:
        return [e for e in self.events if isinstance(e, Finished | Failed) and e.id == job_id]

    def ended_twice(self) -> set[str]:
        ends = Counter(e.id for e in self.events if isinstance(e, Finished | Failed))
        return {job_id for job_id, n in ends.items() if n > 1}

    def text(self, job_id: str) -> str:
        return "".join(e.text for e in self.events if hasattr(e, "text") and e.id == job_id)


async def opened(pipe: Path) -> int:
    """The writing end of a pipe, as soon as a worker has opened it for reading."""
    async with asyncio.timeout(BOUND_S):
        while True:
            try:
                return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no reader yet
                    raise
                await asyncio.sleep(0.01)


Starter = Callable[..., Awaitable[tuple[Worker, Ear]]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Starter]:
    """Start a worker; `directive` is what its fake engine does while loading."""
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    workers: list[tuple[Worker, Ear]] = []

    async def starter(
        directive: str = "",
        *,
        parallel: int = 4,
        timeouts: Timeouts = QUICK,
        ready: bool = True,
        copier: Copier | None = None,
    ) -> tuple[Worker, Ear]:
        path = tmp_path / f"model{len(workers)}.gguf"
        _direct(path, directive)
        ear = Ear()
        worker = Worker(spec_of("m", "gguf", str(path), 512, parallel), ear, timeouts)
        workers.append((worker, ear))
        await worker.start(copier)
        if ready:
            await ear.until(lambda: ear.ready is not None)
        return worker, ear

    yield starter
    for worker, ear in workers:  # whatever a test did: every worker is gone, and no job has ended twice
        await worker.stop()
        assert not worker.alive
        assert ear.n_exits == 1
        assert ear.ended_twice() == set()


def _direct(path: Path, directive: str) -> None:
    Path(f"{path}.fake").write_text(directive)


def ask(job_id: str, text: str, **fields: object) -> Generate:
    return Generate(job_id, TextPrompt(text), **fields)  # type: ignore[arg-type]


def process_file(pid: int, name: str = "") -> Path:
    return Path("/proc", str(pid), name)


def ends(pid: int, *, within_s: float) -> bool:
    """Wait for the end of a process, as the kernel tells it."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], within_s)[0])
    finally:
        os.close(fd)
