"""Folders for computed prompts: one cap for all models, nothing left behind, whoever ends and however."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from server.memory.conversations import open_conversations

MIB = 1 << 20


def fill(folder: str, n_bytes: int, *, name: str, used_s: float) -> Path:
    path = Path(folder) / name
    path.write_bytes(b"x" * n_bytes)
    os.utime(path, (used_s, used_s))
    return path


def test_folders_are_for_this_user_only_and_gone_with_the_server(tmp_path: Path) -> None:
    kept = open_conversations(64 * MIB, n_models=2, within=tmp_path)
    store = kept.grant("org/model:Q4")
    assert store is not None
    assert kept.root is not None

    modes = [stat.S_IMODE(path.stat().st_mode) for path in (kept.root, Path(store.folder))]
    fill(store.folder, MIB, name="1.kv", used_s=1)

    assert modes == [0o700, 0o700]
    assert kept.used_bytes >= MIB
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_granted_never_exceeds_the_cap_and_unloaded_models_make_room(tmp_path: Path) -> None:
    kept = open_conversations(64 * MIB, n_models=3, within=tmp_path)
    a = kept.grant("a")
    assert a is not None
    assert a.max_bytes == 32 * MIB
    old, young = (fill(a.folder, 16 * MIB, name=f"{i}.kv", used_s=i) for i in (1, 2))
    kept.release("a")

    b, c = kept.grant("b"), kept.grant("c")

    assert b is not None
    assert c is not None
    assert b.max_bytes + c.max_bytes == 48 * MIB
    assert (old.exists(), young.exists()) == (False, True)
    again = kept.grant("a")
    assert again is not None
    assert (again.folder, again.max_bytes) == (a.folder, 8 * MIB)
    assert not young.exists()
    kept.close()


def test_one_model_alone_has_all_of_it(tmp_path: Path) -> None:
    kept = open_conversations(64 * MIB, n_models=1, within=tmp_path)

    store = kept.grant("a")

    assert store is not None
    assert store.max_bytes == 64 * MIB
    kept.close()


def test_what_a_killed_server_left_goes_at_the_next_start_and_a_living_ones_stays(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from server.memory.conversations import open_conversations\n"
        "store = open_conversations(64 << 20, n_models=1, within=Path(sys.argv[1])).grant('a')\n"
        "(Path(store.folder) / '1.kv').write_bytes(b'prompt'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=30)
    (left,) = tmp_path.iterdir()

    living = open_conversations(64 * MIB, n_models=1, within=tmp_path)
    assert not left.exists()
    second = open_conversations(64 * MIB, n_models=1, within=tmp_path)

    assert living.root is not None
    assert living.root.exists()
    living.close()
    second.close()


def test_without_memory_to_give_there_is_none(tmp_path: Path) -> None:
    for kept in (
        open_conversations(0, n_models=1, within=tmp_path),
        open_conversations(64 * MIB, n_models=1, within=tmp_path / "missing"),
    ):
        assert kept.grant("a") is None
        assert (kept.max_bytes, kept.used_bytes) == (0, 0)
        kept.close()
