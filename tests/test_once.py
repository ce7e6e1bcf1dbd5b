"""What is made once is made once, also by processes that ask at the same time."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.once import once


def _ask(base: Path, name: str) -> Path:
    """As a process of the run that has a folder of its own beside those of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_XDIST_WORKER", name)
        factory = pytest.TempPathFactory(base / name, 3, "all", lambda *_, **__: None, _ispytest=True)
        return once(factory, "thing", _make)


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


def test_what_could_not_be_made_is_tried_again(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def fail(_folder: Path) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        once(tmp_path_factory, "failing", fail)

    assert once(tmp_path_factory, "failing", lambda folder: folder.exists()) is True
