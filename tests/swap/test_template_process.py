"""The template process: workers are copies of it and the server's children, a dead one is replaced, no card is held."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from backends.border import template_process_main
from backends.border.worker import Worker
from server.pool.template_keeper import TemplateKeeper, TemplateRules
from tests.pool.conftest import Maker, until
from tests.specs import spec_of
from tests.worker.conftest import QUICK, Ear, ask
from tests.worker.parent import started

RULES = TemplateRules(back_off_s=0.2, longest_back_off_s=0.4)
New = Callable[..., Awaitable[TemplateKeeper]]


@pytest.fixture
async def new(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[New]:
    """A template process of the fake engine, closed at the end; with `warm` its imports are done."""
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "tests.fakes.engine:load")
    made: list[TemplateKeeper] = []

    async def maker(*, rules: TemplateRules = RULES, warm: bool = True, enabled: bool = True) -> TemplateKeeper:
        template = TemplateKeeper("gguf", enabled=enabled, rules=rules)
        made.append(template)
        template.prepare()
        if warm:
            await until(lambda: template.warm)
        return template

    yield maker
    for template in made:
        await template.close()
        assert template.pid is None


async def loaded(template: TemplateKeeper, folder: Path, *, directive: str = "") -> tuple[Worker, Ear]:
    path = folder / "m.gguf"
    await asyncio.to_thread(Path(f"{path}.fake").write_text, directive)
    ear = Ear()
    worker = Worker(spec_of("m", "gguf", str(path), 512, 4), ear, QUICK)
    await worker.start(template)
    await ear.until(lambda: ear.ready is not None or ear.how is not None)
    return worker, ear


def parent_of(worker: Worker) -> int:
    assert worker.pid is not None
    return int(psutil.Process(worker.pid).ppid())


def is_copy(worker: Worker) -> bool:
    """A copy keeps the command line of what it was copied from."""
    assert worker.pid is not None
    return "backends.border.template_process_main" in psutil.Process(worker.pid).cmdline()


async def test_a_copy_is_a_worker_and_the_child_of_this_process(new: New, tmp_path: Path) -> None:
    template = await new()
    worker, ear = await loaded(template, tmp_path)
    assert worker.pid is not None
    process = psutil.Process(worker.pid)
    assert is_copy(worker)
    assert parent_of(worker) == os.getpid()
    assert process.name() == "onecard-worker"
    assert os.getsid(worker.pid) == worker.pid
    worker.submit(ask("a", "hello"))
    await ear.terminal("a")
    await worker.stop()

    assert ear.text("a") == "echo: hello"
    assert ear.how is not None
    assert ear.how.code is None
    assert not psutil.pid_exists(worker.pid)
    assert template.warm


async def test_the_server_learns_how_a_copy_ended_and_what_it_said(new: New, tmp_path: Path) -> None:
    template = await new()
    worker, ear = await loaded(template, tmp_path)
    worker.submit(ask("a", "!crash"))
    how = await ear.until_exit()
    assert how.code == "worker_crashed"
    assert "ended with SIGABRT" in how.message

    _, ear = await loaded(template, tmp_path, directive="crash")
    assert ear.how is not None
    assert ear.how.code == "load_failed"
    assert (
        "(its library gave up): llama.cpp found that n_embd > 0 does not hold (m.gguf.c:17), while" in ear.how.message
    )


async def test_copies_outlive_the_template_process(new: New, tmp_path: Path) -> None:
    template = await new()
    worker, ear = await loaded(template, tmp_path)
    assert template.pid is not None
    gone = template.pid
    os.kill(template.pid, signal.SIGKILL)
    await until(lambda: template.pid != gone)
    worker.submit(ask("a", "hello"))
    await ear.terminal("a")
    assert ear.text("a") == "echo: hello"
    await worker.stop()


async def test_copies_die_with_the_server(new: New, tmp_path: Path) -> None:
    """In a process of its own, which is killed."""
    code = """
import asyncio, sys
from pathlib import Path
from server.pool.template_keeper import TemplateKeeper
from tests.swap.test_template_process import RULES, loaded
async def main():
    template = TemplateKeeper("gguf", enabled=True, rules=RULES)
    worker, _ = await loaded(template, Path(sys.argv[1]))
    print(template.pid, worker.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""
    process = started(code, str(tmp_path))
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)
        running = [psutil.Process(int(word)) for word in line.split()]
        assert running[1].ppid() == process.pid
    finally:
        process.kill()
        process.communicate()
    await until(lambda: not any(_alive(p) for p in running))


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


async def test_many_copies_one_after_the_other_and_at_once(new: New, tmp_path: Path) -> None:
    template = await new()
    workers = await asyncio.gather(*(loaded(template, tmp_path) for _ in range(6)))
    assert len({worker.pid for worker, _ in workers}) == 6
    assert all(is_copy(worker) for worker, _ in workers)
    await asyncio.gather(*(worker.stop() for worker, _ in workers))
    assert template.pid is not None
    assert psutil.Process(template.pid).children() == []
    assert psutil.Process(template.pid).num_fds() < 10


async def test_a_load_waits_for_a_template_process_that_does_its_imports(new: New, tmp_path: Path) -> None:
    template = await new(warm=False)
    worker, _ = await loaded(template, tmp_path)
    assert is_copy(worker)
    await worker.stop()


async def test_a_stuck_template_process_is_replaced_and_the_load_goes_on_without_it(
    new: New, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = await new(rules=TemplateRules(back_off_s=0.2, copy_within_s=0.3))
    assert template.pid is not None
    stuck = template.pid
    os.kill(stuck, signal.SIGSTOP)
    worker, _ = await loaded(template, tmp_path)
    assert not is_copy(worker)
    assert f'template_process_failed pid={stuck} reason="it does not answer"' in caplog.text
    await until(lambda: template.warm and template.pid != stuck)
    await worker.stop()


async def test_imports_that_take_too_long_are_told_with_their_limit(
    new: New, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = await new(warm=False, rules=TemplateRules(warm_within_s=0.0))
    worker, _ = await loaded(template, tmp_path)
    assert not is_copy(worker)
    assert 'template_process_unfit backend=gguf reason="its imports took more than 0 s"' in caplog.text
    await worker.stop()


async def test_a_template_process_that_dies_is_replaced_after_a_pause(new: New) -> None:
    template = await new()
    seen = {template.pid}
    for _ in range(2):
        assert template.pid is not None
        os.kill(template.pid, signal.SIGKILL)
        await until(lambda: template.pid is None)
        await until(lambda: template.warm and template.pid not in seen)
        seen.add(template.pid)


async def test_a_backend_that_cannot_be_copied_gets_no_other_template_process(
    new: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "threaded.py"
    package.write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "from tests.fakes.engine import load\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))))
    monkeypatch.setenv("ONECARD_TEST_ENGINE", "threaded:load")
    with caplog.at_level(logging.WARNING, logger="onecard.template_process"):
        template = TemplateKeeper("gguf", enabled=True, rules=RULES)
        template.prepare()
        await until(lambda: not template.started)
        worker, _ = await loaded(template, tmp_path)
    assert "the imports started 1 threads" in caplog.text
    assert not template.started
    assert not is_copy(worker)
    await worker.stop()
    await template.close()


def test_an_open_graphics_card_makes_a_process_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process_main, "n_threads", lambda: 1)
    assert template_process_main.why_unfit() is None
    monkeypatch.setattr("backends.machine.kernel.CARDS", (str(tmp_path),))
    with (tmp_path / "nvidia0").open("w"):
        assert "graphics card" in str(template_process_main.why_unfit())


async def test_no_template_process_where_memory_is_short_or_it_is_turned_off(new: New, tmp_path: Path) -> None:
    short = await new(warm=False, rules=TemplateRules(least_available_bytes=2**60))
    off = await new(warm=False, enabled=False)
    await until(lambda: not short.started)
    assert short.pid is None
    assert not off.started
    for template in (short, off):
        worker, _ = await loaded(template, tmp_path)
        assert not is_copy(worker)
        await worker.stop()


async def begun_and_closed(new: New) -> None:
    template = await new(warm=False)
    await until(lambda: template._timer is None)
    await template.close()
    assert not template.started


async def test_a_template_process_that_is_just_being_started_leaves_nothing_when_closed(new: New) -> None:
    before = set(psutil.Process().children())
    for _ in range(5):
        await begun_and_closed(new)
    assert set(psutil.Process().children()) <= before


async def test_a_pool_copies_its_template_process_and_leaves_none(make: Maker) -> None:
    rig = await make("a", "b", sections={"scheduler": {"template_process": True}})
    template = rig.pool._template_processes["gguf"]
    await until(lambda: template.warm)
    first = template.pid
    assert rig.pool.status().memory.template_process_bytes > 2**20

    await rig.ask("a", "hello")
    await rig.ask("b", "hello")
    pids = [rig.pid("a"), rig.pid("b"), first]
    assert len(set(pids)) == 3
    assert template.pid == first
    assert all("backends.border.template_process_main" in psutil.Process(pid).cmdline() for pid in pids)

    await rig.pool.close(0)
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)


@pytest.mark.engine
async def test_a_warm_template_process_holds_no_model_and_has_only_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONECARD_TEST_ENGINE", raising=False)
    template = TemplateKeeper("gguf", enabled=True, rules=RULES)
    template.prepare()
    await until(lambda: template.warm)
    assert template.pid is not None
    process = psutil.Process(template.pid)
    maps = {Path(m.path).name for m in process.memory_maps()}
    assert any(name.startswith("libllama") for name in maps), "the imports are not done"
    assert process.num_threads() == 1
    assert template.resident_bytes < 40 * 2**20
    links = [f.path for f in process.open_files()]
    assert not any("nvidia" in link for link in links), "it holds the card"
    await template.close()
