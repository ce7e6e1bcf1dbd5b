"""What is made once is made once, also by processes that ask at the same time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.once import once


def _ask(base: Path, name: str, make: Callable[[Path], Path] | None = None) -> Path:
    """As a process of the run that has a folder of its own beside those of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_XDIST_WORKER", name)
        factory = pytest.TempPathFactory(base / f"popen-{name}", 3, "all", lambda *_, **__: None, _ispytest=True)
        return once(factory, "thing", make or _make)


def _die(folder: Path) -> Path:
    (folder / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
    return folder


def _make(folder: Path) -> Path:
    with (folder.parent.parent / "made").open("a") as log:
        log.write("x")
    (folder / "file").write_text("there")
    return folder / "file"


def test_processes_that_ask_at_the_same_time_get_the_same_files(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        paths = set(pool.map(_ask, [tmp_path] * 8, [f"gw{i}" for i in range(8)]))

    (path,) = paths
    assert path.read_text() == "there"
    assert (tmp_path / "made").read_text() == "x"


def test_a_run_inside_a_test_finds_nothing_of_former_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    factories = [
        pytest.TempPathFactory(tmp_path / name, 3, "all", lambda *_, **__: None, _ispytest=True)
        for name in ("pytest-1", "pytest-2")
    ]

    first, second = (once(factory, "thing", _make) for factory in factories)

    assert first.is_relative_to(tmp_path / "pytest-1")
    assert second.is_relative_to(tmp_path / "pytest-2")


def test_what_a_killed_process_has_begun_is_made_again(tmp_path: Path) -> None:
    context = get_context("fork")
    child = context.Process(target=_ask, args=(tmp_path, "gw0", _die))
    child.start()
    child.join(20)

    assert child.exitcode == -signal.SIGKILL
    assert _ask(tmp_path, "gw1").read_text() == "there"


def test_what_could_not_be_made_is_tried_again(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def fail(_folder: Path) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        once(tmp_path_factory, "failing", fail)

    assert once(tmp_path_factory, "failing", lambda folder: folder.exists()) is True
