"""How a file gets into memory: what is chosen, what is refused, how far a cold load is, and what is told of it."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest

from backends.engine import LoadError
from backends.gguf import load_mode
from backends.gguf.library_log import LibraryLog
from backends.gguf.load_mode import FileState, check_lock, choose, watched
from backends.gguf.model import Model
from backends.messages import FileLoad
from tests.models import canary_p

GIB = 2**30


@pytest.mark.parametrize(
    ("wanted", "cached", "room", "on_card", "mode"),
    [
        (None, 0.0, 1 * GIB, True, "direct"),
        ("auto", 0.5, 1 * GIB, True, "direct"),
        (None, 1.0, 1 * GIB, True, "mmap"),
        (None, 0.0, 64 * GIB, True, "mmap"),
        (None, 0.0, 1 * GIB, False, "mmap"),
        ("lock", 0.0, 1 * GIB, True, "lock"),
        ("mmap", 0.0, 1 * GIB, True, "mmap"),
        ("direct", 1.0, 64 * GIB, False, "direct"),
    ],
)
def test_a_file_that_the_cache_cannot_hold_is_read_past_it_on_its_way_to_a_card(
    wanted: str | None, cached: float, room: int, on_card: bool, mode: str
) -> None:
    assert choose(wanted, FileState(5 * GIB, cached, room), on_card=on_card) == mode


def test_what_may_not_be_locked_is_refused_with_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    state = FileState(5 * GIB, 1.0, 64 * GIB)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check_lock(state, resource.RLIM_INFINITY)
    check_lock(state, 6 * GIB)

    with pytest.raises(LoadError, match=rf"needs {5 * GIB} bytes .* may lock {8 << 20}\. hint: raise `ulimit -l`"):
        check_lock(state, 8 << 20)


def cold(path: Path) -> None:
    """Let the page cache forget the file."""
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """64 MiB that the page cache holds nothing of; skipped where its file system keeps them all the same (tmpfs)."""
    path = tmp_path / "weights.gguf"
    path.write_bytes(os.urandom(1 << 20) * 64)
    cold(path)
    if load_mode.cached_share([path]) > 0.1:
        pytest.skip("this file system lives in memory")
    return path


def test_the_page_cache_tells_how_far_a_cold_load_is(file: Path) -> None:
    seen: list[float] = []
    half = threading.Event()

    def progress(share: float) -> None:
        seen.append(share)
        if share >= 0.35:
            half.set()

    with watched(file, None, progress, on_card=False) as loading:
        assert (loading.mode, loading.told.cached < 0.1) == ("mmap", True)
        with file.open("rb") as opened:
            opened.read(file.stat().st_size * 3 // 4)
        assert half.wait(20), seen
        loading.loaded(0.5)
        loading.loaded(1.0)

    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert all(share <= 0.8 for share in seen[:-2])
    assert load_mode.cached_share([file]) > 0.7


def test_a_warm_load_is_as_far_as_the_library_says(file: Path) -> None:
    file.read_bytes()
    seen: list[float] = []
    with watched(file, None, seen.append, on_card=True) as loading:
        loading.loaded(0.25)
    assert (seen, loading.told.cached) == ([0.25], 1.0)


def test_what_is_told_of_a_load() -> None:
    assert FileLoad("mmap", GIB, 1.0).told(2.0) == {"load_mode": "mmap", "cached": 1.0}
    assert FileLoad("direct", GIB, 0.5).told(2.0) == {"load_mode": "direct", "cached": 0.5, "load_mib_per_s": 256}


@pytest.mark.engine
def test_every_part_of_a_split_model_counts_for_what_it_is(tmp_path: Path) -> None:
    """Prefixes that another process kept are worth nothing where one of the parts has changed."""
    canary_p.build(tmp_path / "s.gguf", part_tensors=10)
    first, *others = sorted(tmp_path.glob("s-*.gguf"))

    def identity() -> str:
        model = Model(first, gpu_layers=0, log=LibraryLog(), dry=True)
        model.close()
        return model.identity

    before = identity()
    assert identity() == before
    os.utime(others[-1], ns=(1, 1))
    assert identity() != before
    others[0].unlink()
    with pytest.raises(LoadError, match=rf"{others[0].name} is missing: the model is split into {1 + len(others)}"):
        identity()
