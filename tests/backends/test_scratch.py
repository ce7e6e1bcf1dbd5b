"""Folders for half-done work, with several processes beside each other."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from backends.files import scratch


def test_a_folder_that_another_sweeps_away_before_its_lock_is_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    swept: list[Path] = []

    def late(fd: int, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.extend(tmp_path.iterdir())
            scratch._sweep(tmp_path)
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with scratch.scratch_folder(tmp_path) as folder:
        assert len(swept) == 1
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "half").write_text("done")
        scratch._sweep(tmp_path)
        assert (folder / "half").exists(), "its process lives"

    assert list(tmp_path.iterdir()) == []
