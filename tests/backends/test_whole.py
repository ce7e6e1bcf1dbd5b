"""Files and folders that take the place of others: whole, and never missing in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backends.files.whole import _exchange, replacing


def folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "one").write_text(text)


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a file system that can exchange folders, then none is moved away before its successor is there."""
    target = tmp_path / "model"
    folder(target, "old")
    folder(tmp_path / "other", "new")
    if not _exchange(target, tmp_path / "other"):
        pytest.skip("this file system cannot exchange two folders")
    moved, rename = list[Path](), Path.rename

    def seen(self: Path, other: Any) -> Path:
        moved.append(self)
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", seen)
    with replacing(target) as aside:
        folder(aside, "newer")
        assert (target / "one").read_text() == "new"

    assert (target / "one").read_text() == "newer"
    assert target not in moved
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_where_folders_cannot_be_exchanged_the_old_one_comes_back_on_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "model"
    folder(target, "old")
    monkeypatch.setattr("backends.files.whole._exchange", lambda one, other: False)
    with replacing(target) as aside:
        folder(aside, "new")
    assert (target / "one").read_text() == "new"

    rename = Path.rename

    def full(self: Path, other: Any) -> Path:
        if self.name == "model":  # the old one may step aside, the new one may not come
            if self == target:
                return rename(self, other)
            raise OSError(28, "No space left on device")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"), replacing(target) as aside:
        folder(aside, "newer")

    assert (target / "one").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
