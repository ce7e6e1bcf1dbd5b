"""Dry loads from the server's side: real children that answer, refuse, die and hang."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import warnings
from pathlib import Path

import psutil
import pytest

from backends.border import dry
from server.metrics import Metrics
from server.pool.pool import Pool
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection, SchedulerSection
from tests.models import broken
from tests.pool.conftest import until
from tests.specs import plan_of

pytestmark = pytest.mark.engine

PLAN = plan_of(1024, 2, "f16", 0, "cpu")
STUB = """
import json, os, signal, socket, sys
line = socket.socket(fileno=int(sys.argv[sys.argv.index("--fd") + 1])).makefile("rw")
for asked in line:
    question = json.loads(asked)
    name = os.path.basename(question["path"])
    if name == "abort": os.abort()
    if name.startswith("hang"): signal.pause()
    if name == "babble": print("what?", file=line, flush=True); continue
    if name == "secret": name = os.environ.get("ONECARD_API_KEY", "")
    plan = {"cache": 1, "compute": {"CPU": len(name)}, "output": {}}
    print(json.dumps({"weights": 7, "plans": [plan] * len(question["plans"])}), file=line, flush=True)
"""


async def collect(*paths: Path, within_s: float = 20.0) -> dict[str, dry.Answer]:
    questions = [dry.DryQuestion("backends.gguf.dryrun", path, (PLAN,)) for path in paths]
    return {q.path.name: answer async for q, answer in dry.ask(questions, within_s=within_s)}


async def test_one_child_estimates_several_models(canary_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    told = await collect(broken, canary_path)

    assert told["broken.gguf"] == (None,)
    (sizes,) = told[canary_path.name]
    assert sizes is not None
    assert sizes.weights > 2**20
    assert sizes.cache == 2**19


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A child of the same protocol that misbehaves by the name of the file."""
    package = tmp_path / "stub" / "backends" / "gguf"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package / "dryrun.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("fault", ["abort", "babble"])
async def test_child_that_dies_or_babbles_loses_one_answer(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    told = await collect(Path("/a"), Path(f"/{fault}"), Path("/b"))

    assert told[fault] == (None,)
    assert told["a"][0] is not None
    assert told["b"][0] is not None
    assert f"dry_load_failed file={fault}" in caplog.text


@pytest.mark.usefixtures("stub")
async def test_child_that_hangs_is_killed_and_the_rest_is_asked_elsewhere() -> None:
    async with asyncio.timeout(20):
        told = await collect(Path("/hang"), Path("/b"), within_s=0.5)
    assert told["hang"] == (None,)
    assert told["b"][0] is not None


@pytest.mark.usefixtures("stub")
async def test_child_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONECARD_API_KEY", "sk-very-secret")
    assert "ONECARD_API_KEY" in os.environ
    (sizes,) = (await collect(Path("/secret")))["secret"]
    assert sizes is not None
    assert sizes.compute == {"CPU": 0}


# Cut short


def child_of_ours() -> int | None:
    """The pid of a child that is asked; None when there is none."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "backends.gguf.dryrun" in child.cmdline():
                return child.pid
    return None


@pytest.mark.usefixtures("stub")
def test_question_that_is_cancelled_again_and_again_leaves_no_child_and_no_warning() -> None:
    pid: int | None = None

    async def life() -> None:
        nonlocal pid
        asking = asyncio.create_task(collect(Path("/hang")))
        await until(lambda: child_of_ours() is not None)
        pid = child_of_ours()
        async with asyncio.timeout(20):
            while not asking.done():
                asking.cancel()
                await asyncio.sleep(0)
        assert asking.cancelled()

    gc.collect()  # what earlier tests of this process have left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(life())
        gc.collect()

    assert pid is not None
    assert not psutil.pid_exists(pid)


@pytest.fixture
def pool(stub: None, tmp_path: Path) -> Pool:
    """One that asks a child which hangs, once it has looked at its files."""
    path = tmp_path / "hang.gguf"
    path.write_bytes(broken.VALID.encode())
    settings = Settings(
        memory=MemorySection(device="cpu"),
        scheduler=SchedulerSection(template_process=False),
        models={"a": ModelConfig(path=str(path), context=512)},
    )
    return Pool(settings, Catalog(settings), Metrics(["a"]))


async def test_pool_that_is_closed_before_it_asks_asks_nothing(pool: Pool) -> None:
    await pool.start()

    await pool.close(0)

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_pool_that_is_closed_while_it_asks_leaves_neither_child_nor_task(pool: Pool) -> None:
    await pool.start()
    await until(lambda: child_of_ours() is not None)
    pid = child_of_ours()

    await pool.close(0)

    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert asyncio.all_tasks() == {asyncio.current_task()}
