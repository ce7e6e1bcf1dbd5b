"""The next model's file is read while another one leaves, as far as there is time and memory, and only when it pays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from backends.machine import host
from server.pool import read_ahead
from server.pool.read_ahead import ReadAhead, files_of, is_cached, pull_in

SIZE = 8 * 2**20


@pytest.fixture
def cold(tmp_path: Path) -> Path:
    """A file that is not in the page cache."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(SIZE))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if is_cached(file.fileno(), SIZE):
            pytest.skip("this file system keeps everything in memory")
    return path


def cached(path: Path) -> bool:
    with path.open("rb") as file:
        return is_cached(file.fileno(), SIZE)


def test_the_file_of_the_model_that_comes_is_read_while_the_other_leaves(cold: Path) -> None:
    reader = ReadAhead({"next": cold}.__getitem__)
    reader.on_change("unloading", {"model": "a", "reason": "manual"})
    assert reader._thread is None
    reader.on_change("drains", {"model": "a", "reason": "room", "for": "next"})
    reader.join()
    assert cached(cold)


def test_nothing_is_read_twice_nor_after_the_load_has_begun(cold: Path) -> None:
    stopped = threading.Event()
    stopped.set()
    with cold.open("rb") as file:
        assert pull_in(file.fileno(), stopped) == 0
        assert pull_in(file.fileno(), threading.Event()) == SIZE
        assert pull_in(file.fileno(), threading.Event()) == 0


def test_nothing_is_read_when_memory_is_short(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "LEFT_FREE_BYTES", 2 * host.total_bytes())
    with cold.open("rb") as file:
        assert pull_in(file.fileno(), threading.Event()) == 0
    assert not cached(cold)


def test_a_file_that_is_gone_is_no_concern(tmp_path: Path) -> None:
    reader = ReadAhead({"next": tmp_path / "gone.gguf"}.__getitem__)
    reader.on_change("evicted", {"for": "next"})
    reader.join()


def test_all_parts_of_a_model_are_found(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other-00001-of-00002.gguf", "plain.gguf"):
        (tmp_path / name).touch()
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    (folder / "config.json").touch()

    assert [p.name for p in files_of(tmp_path / "m-00001-of-00002.gguf")] == [
        "m-00001-of-00002.gguf",
        "m-00002-of-00002.gguf",
    ]
    assert files_of(tmp_path / "plain.gguf") == [tmp_path / "plain.gguf"]
    assert files_of(folder) == [folder / "model.safetensors"]
