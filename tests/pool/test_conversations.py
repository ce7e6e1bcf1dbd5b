"""Folders for cached prefixes: one cap for all models, nothing left behind, whatever ends and however."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.machine import host
from backends.messages import Store
from backends.prefix.eviction_score import file_name
from server.memory.prefix_cache import PrefixCache, open_prefix_cache, roomiest

MIB = 1 << 20


def fill(store: Store, n_bytes: int, *, number: int, cost_us: float) -> Path:
    """What a worker would have put there, worth so much computing."""
    path = Path(store.folder) / file_name(number, cost_us)
    path.write_bytes(b"x" * n_bytes)
    return path


def join(kept: PrefixCache, model: str) -> tuple[Store, list[int]]:
    """A worker that takes its folder, and the bounds it is told from then on."""
    told: list[int] = []
    store = kept.join(model, kept.max_bytes)
    assert store is not None
    kept.listens(model, told.append)
    return store, told


def test_folders_are_for_this_user_only_and_gone_with_the_server(tmp_path: Path) -> None:
    kept = open_prefix_cache(64 * MIB, n_models=2, within=tmp_path, disk_root=tmp_path / "disk", disk_bytes=MIB)
    store, _ = join(kept, "org/model:Q4")
    assert kept.root is not None
    assert kept.disk is not None

    folders = [kept.root.path, kept.disk.path, Path(store.folder)]
    fill(store, MIB, number=1, cost_us=1)
    Path(store.disk_folder).mkdir()
    fill(Store(store.disk_folder, 0), MIB, number=1, cost_us=1)

    assert [stat.S_IMODE(path.stat().st_mode) for path in folders] == [0o700] * 3
    assert Path(store.disk_folder).parent == kept.disk.path
    assert kept.used_bytes >= MIB
    kept.close()
    assert [path for path in tmp_path.rglob("*") if path != tmp_path / "disk"] == []


def test_one_model_alone_has_all_of_it_and_loaded_ones_share(tmp_path: Path) -> None:
    kept = open_prefix_cache(64 * MIB, n_models=3, within=tmp_path)
    a, told_a = join(kept, "a")
    assert a.max_bytes == 64 * MIB

    b, told_b = join(kept, "b")
    kept.fit(kept.max_bytes)
    assert (b.max_bytes, told_a, told_b) == (0, [32 * MIB], [])
    assert kept.reserved_bytes == 64 * MIB
    kept.confirm("a", 32 * MIB)
    kept.fit(kept.max_bytes)

    assert told_b == [32 * MIB]
    assert kept.reserved_bytes == 64 * MIB
    kept.close()


def test_of_what_unloaded_models_have_left_the_most_worth_per_byte_stays(tmp_path: Path) -> None:
    kept = open_prefix_cache(64 * MIB, n_models=2, within=tmp_path)
    a, _ = join(kept, "a")
    cheap, dear, dearest = (fill(a, 20 * MIB, number=i, cost_us=cost) for i, cost in enumerate((9e4, 5e5, 2e6)))
    written = Path(a.folder) / "00000007-1.part"
    written.write_bytes(b"half")
    kept.leave("a")
    assert not written.exists()
    assert kept.reserved_bytes == kept.used_bytes == 60 * MIB

    b, _ = join(kept, "b")

    assert [path.exists() for path in (cheap, dear, dearest)] == [False, False, True]
    assert b.max_bytes == 44 * MIB
    kept.fit(10 * MIB)
    assert not dearest.exists()
    kept.close()


def test_who_comes_back_finds_what_fits(tmp_path: Path) -> None:
    kept = open_prefix_cache(64 * MIB, n_models=2, within=tmp_path)
    a, _ = join(kept, "a")
    cheap, dear = (fill(a, 20 * MIB, number=i, cost_us=cost) for i, cost in enumerate((1e4, 2e6)))
    kept.leave("a")

    again = kept.join("a", 30 * MIB)

    assert again is not None
    assert (again.folder, again.max_bytes) == (a.folder, 30 * MIB)
    assert (cheap.exists(), dear.exists()) == (False, True)
    kept.close()


def test_a_file_not_used_for_long_is_worth_less(tmp_path: Path) -> None:
    kept = open_prefix_cache(64 * MIB, n_models=2, within=tmp_path)
    a, _ = join(kept, "a")
    old, young = (fill(a, 20 * MIB, number=i, cost_us=cost) for i, cost in enumerate((1e6, 4e5)))
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    kept.leave("a")

    kept.fit(30 * MIB)

    assert (old.exists(), young.exists()) == (False, True)
    kept.close()


def test_a_worker_about_to_end_is_told_what_may_stay_in_memory_only_where_a_disk_takes_the_rest(tmp_path: Path) -> None:
    for disk_bytes, expected in ((0, []), (64 * MIB, [15 * MIB])):
        kept = open_prefix_cache(
            64 * MIB, n_models=2, within=tmp_path, disk_root=tmp_path / "disk", disk_bytes=disk_bytes
        )
        _, told = join(kept, "a")
        kept.before_leaving("a", 30 * MIB, n_loaded=1)
        assert told == expected
        kept.close()


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_a_killed_server_left_goes_at_the_next_start_and_a_living_ones_stays(tmp_path: Path, where: str) -> None:
    memory, disk = tmp_path / "memory", tmp_path / "disk"
    memory.mkdir()
    code = (
        "import os, sys; from pathlib import Path; from server.memory.prefix_cache import open_prefix_cache\n"
        "memory, disk = map(Path, sys.argv[1:])\n"
        "kept = open_prefix_cache(64 << 20, n_models=1, within=memory, disk_root=disk, disk_bytes=64 << 20)\n"
        "store = kept.join('a', 64 << 20); Path(store.disk_folder).mkdir()\n"
        "[(Path(f) / '1.kv').write_bytes(b'prompt') for f in (store.folder, store.disk_folder)]\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(memory), str(disk)], check=False, timeout=30)
    (left,) = (tmp_path / where).iterdir()
    assert list(left.rglob("*.kv"))

    living = open_prefix_cache(64 * MIB, n_models=1, within=memory, disk_root=disk, disk_bytes=MIB)
    assert not left.exists()
    second = open_prefix_cache(64 * MIB, n_models=1, within=memory, disk_root=disk, disk_bytes=MIB)

    for root in (living.root, living.disk):
        assert root is not None
        assert root.path.exists()
    living.close()
    second.close()
    assert list((tmp_path / where).iterdir()) == []


def test_without_memory_to_give_there_is_none(tmp_path: Path) -> None:
    for kept in (
        open_prefix_cache(0, n_models=1, within=tmp_path),
        open_prefix_cache(64 * MIB, n_models=1, within=tmp_path / "missing"),
    ):
        assert kept.join("a", 64 * MIB) is None
        assert (kept.max_bytes, kept.used_bytes, kept.reserved_bytes) == (0, 0, 0)
        kept.close()


def test_a_disk_that_cannot_be_written_costs_the_disk_and_not_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    kept = open_prefix_cache(64 * MIB, n_models=1, within=tmp_path, disk_root=tmp_path / "file", disk_bytes=MIB)

    store = kept.join("a", 64 * MIB)
    assert store is not None
    assert (store.max_bytes, store.disk_folder, store.disk_bytes) == (64 * MIB, "", 0)
    kept.close()


def test_folders_in_memory_are_told_by_their_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "proc").mkdir()
    mine = tmp_path / "run"
    mine.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(mine))
    mounts = f"overlay / overlay rw 0 0\nshm /dev/shm tmpfs rw 0 0\ntmpfs {tmp_path} tmpfs rw 0 0\n"
    (tmp_path / "proc/mounts").write_text(mounts)

    found = host.memory_folders(tmp_path)

    assert (Path("/dev/shm") in found) == os.access("/dev/shm", os.W_OK)
    assert mine in found
    (tmp_path / "proc/mounts").write_text("overlay / overlay rw 0 0\n")
    assert host.memory_folders(tmp_path) == []


def test_a_folder_with_too_little_room_is_told_and_the_roomiest_one_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    assert roomiest([(32, small), (100, large)]) == (100, large)
    assert roomiest([(100, small), (100, large)]) == (100, small)
    beyond = 1 << 62

    kept = open_prefix_cache(beyond, n_models=1, within=tmp_path)

    assert 0 < kept.max_bytes < beyond
    assert "prefix_cache_small" in caplog.text
    assert "--shm-size" in caplog.text
    kept.close()
