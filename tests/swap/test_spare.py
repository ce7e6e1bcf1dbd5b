"""The spare worker: it stands ready, is taken by a load, is replaced, dies with the server, and hides no device use."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from backends.messages import LoadModel
from backends.worker import Worker
from server.pool.spare import Spare, SpareRules
from tests.pool.conftest import Maker, until
from tests.worker.conftest import QUICK, Ear, ask

RULES = SpareRules(settle_s=0.0, back_off_s=0.2, longest_back_off_s=0.4)
New = Callable[..., Awaitable[Spare]]


@pytest.fixture
async def new(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[New]:
    """A spare of the fake engine, closed at the end; with `warm` its imports are done."""
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    made: list[Spare] = []

    async def maker(*, rules: SpareRules = RULES, warm: bool = True, enabled: bool = True) -> Spare:
        spare = Spare("gguf", enabled=enabled, rules=rules)
        made.append(spare)
        spare.prepare()
        if warm:
            await until(lambda: spare.warm)
        return spare

    yield maker
    for spare in made:
        await spare.close()
        assert spare.pid is None


def spec(folder: Path) -> LoadModel:
    return LoadModel("m", "gguf", str(folder / "m.gguf"), 512, 4)


async def test_a_spare_becomes_the_worker_of_the_next_load(new: New, tmp_path: Path) -> None:
    spare = await new()
    pid = spare.pid
    child = spare.take("gguf")
    ear = Ear()
    worker = Worker(spec(tmp_path), ear, QUICK)

    await worker.start(child)
    await ear.until(lambda: ear.ready is not None)
    worker.submit(ask("a", "hello"))
    await ear.terminal("a")
    await worker.stop()

    assert worker.pid == pid
    assert ear.text("a") == "echo: hello"
    assert ear.how is not None
    assert ear.how.code is None
    assert spare.pid is None
    assert spare.take("gguf") is None


async def test_a_spare_taken_before_its_imports_are_done_loads_all_the_same(new: New, tmp_path: Path) -> None:
    spare = await new(warm=False)
    await until(lambda: spare.pid is not None)
    ear = Ear()
    worker = Worker(spec(tmp_path), ear, QUICK)

    await worker.start(spare.take("gguf"))
    await ear.until(lambda: ear.ready is not None)
    await worker.stop()


async def test_another_backend_takes_no_spare_of_this_one(new: New) -> None:
    spare = await new()
    assert spare.take("bnb") is None
    assert spare.pid is not None


async def test_a_spare_that_dies_is_replaced_with_growing_pauses(new: New) -> None:
    spare = await new()
    seen = {spare.pid}
    for _ in range(2):
        assert spare.pid is not None
        os.kill(spare.pid, signal.SIGKILL)
        await until(lambda: spare.pid is None)
        await until(lambda: spare.warm and spare.pid not in seen)
        seen.add(spare.pid)


async def test_no_spare_is_started_while_a_model_loads(new: New) -> None:
    spare = await new(warm=False, enabled=True)
    spare.on_change("loading", {"model": "a"})
    spare.on_change("loading", {"model": "b"})
    spare.on_change("loaded", {"model": "a"})
    spare.prepare()
    await asyncio.sleep(0)
    assert not spare.started

    spare.on_change("load_failed", {"model": "b"})
    await until(lambda: spare.warm)


async def test_no_spare_where_memory_is_short_or_it_is_turned_off(new: New) -> None:
    short = await new(warm=False, rules=SpareRules(least_available_bytes=2**60))
    off = await new(warm=False, enabled=False)
    await until(lambda: not short.started)
    assert short.pid is None
    assert not off.started


async def test_a_spare_that_is_just_being_started_leaves_nothing_when_closed(new: New) -> None:
    before = set(psutil.Process().children())
    for _ in range(5):
        spare = await new(warm=False)
        await asyncio.sleep(0)
        await until(lambda spare=spare: spare._timer is None)
        await spare.close()
        assert not spare.started
    assert set(psutil.Process().children()) <= before


async def test_a_pool_uses_its_spare_and_gets_another_and_leaves_none(make: Maker) -> None:
    rig = await make("a", "b", sections={"scheduler": {"spare_worker": True}})
    spare = rig.pool._spare
    await until(lambda: spare.warm)
    first = spare.pid
    assert rig.pool.status().memory.spare_bytes > 2**20

    await rig.ask("a", "hello")
    assert rig.pid("a") == first
    await until(lambda: spare.warm)
    second = spare.pid
    await rig.ask("b", "hello")
    assert rig.pid("b") == second
    await until(lambda: spare.warm)
    third = spare.pid
    assert third is not None

    await rig.pool.close(0)
    assert not any(psutil.pid_exists(pid) for pid in (first, second, third) if pid is not None)


@pytest.mark.engine
async def test_a_warm_spare_holds_no_model_and_has_only_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONECARD_TEST_ENGINE", raising=False)
    spare = Spare("gguf", enabled=True, rules=RULES)
    spare.prepare()
    await until(lambda: spare.warm)
    assert spare.pid is not None
    maps = {Path(m.path).name for m in psutil.Process(spare.pid).memory_maps()}
    assert any(name.startswith("libllama") for name in maps), "the imports are not done"
    assert spare.resident_bytes < 40 * 2**20
    links = [f.path for f in psutil.Process(spare.pid).open_files()]
    assert not any("nvidia" in link for link in links), "it holds the card"
    await spare.close()
