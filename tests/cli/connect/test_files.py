"""What is written can be put back, byte for byte; what cannot be written harms no file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from server.cli.connect import files
from server.cli.connect.edits import Put, read
from server.cli.connect.recipe import File
from server.cli.console import CliError


def file(path: Path, value: str = "new") -> File:
    return File(path, "jsonc", (Put(("onecard",), value),))


def put(path: Path, value: str = "new") -> None:
    files.write("zed", [files.plan("zed", file(path, value))])


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(one.relative_to(folder)): one.read_bytes() if one.is_file() else None for one in folder.rglob("*")}


@pytest.mark.parametrize("before", [None, b"", b"\xef\xbb\xbf{}", b'{"a": 1}', b'// x\r\n{\r\n"a": [1,],\r\n}'])
@pytest.mark.parametrize("times", [1, 2])
def test_undo_puts_back_every_byte_and_leaves_nothing(before, times, home):
    path = home / "below" / "settings.json"
    (home / ".local/share/onecard/connect").mkdir(parents=True)
    if before is not None:
        path.parent.mkdir()
        path.write_bytes(before)
        path.chmod(0o640)
    then = tree(home)
    for number in range(times):
        put(path, f"new {number}")
    assert read("jsonc", path.read_text(encoding="utf-8-sig"))["onecard"] == f"new {times - 1}"
    if before is None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    else:
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    files.undo("zed")
    assert tree(home) == then


def test_undo_refuses_what_was_changed_since(home):
    path = home / "settings.json"
    path.write_text("{}")
    put(path)
    path.write_text('{"mine": 1}')
    with pytest.raises(CliError, match="changed since") as problem:
        files.undo("zed")
    assert f"{path}.before-onecard" in problem.value.message
    assert path.read_text() == '{"mine": 1}'
    put(path)
    files.undo("zed")
    assert path.read_text() == '{"mine": 1}', "a later write has a backup of its own"


def test_undo_without_a_write_is_told(home):
    with pytest.raises(CliError, match="nothing to undo"):
        files.undo("zed")


def test_a_link_stays_a_link(home):
    real = home / "dotfiles" / "settings.json"
    real.parent.mkdir()
    real.write_text('{"a": 1}')
    link = home / "settings.json"
    link.symlink_to(real)
    put(link)
    assert link.is_symlink()
    assert read("json", real.read_text()) == {"a": 1, "onecard": "new"}
    files.undo("zed")
    assert link.is_symlink()
    assert real.read_text() == '{"a": 1}'


def _read_only(path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o444)


def _folder(path: Path) -> None:
    path.mkdir()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _circle(path: Path) -> None:
    path.symlink_to(path)


def _latin(path: Path) -> None:
    path.write_bytes(b'{"a": "\xe9"}')


def _broken(path: Path) -> None:
    path.write_text('{"a": ')


@pytest.mark.parametrize("make", [_read_only, _folder, _pipe, _circle, _latin, _broken])
def test_a_file_that_cannot_be_changed_is_left_as_it_is(make, home):
    path = home / "settings.json"
    make(path)
    before = path.lstat()
    with pytest.raises(CliError) as problem:
        put(path)
    assert str(path) in problem.value.message
    assert "Traceback" not in problem.value.message
    after = path.lstat()
    assert (after.st_mode, after.st_size, after.st_mtime_ns) == (before.st_mode, before.st_size, before.st_mtime_ns)
    assert sorted(one.name for one in home.iterdir()) == ["settings.json"]


def test_where_one_of_two_files_cannot_be_written_none_is(home):
    (home / "a-file").write_text("x")
    plans = [files.plan("zed", file(home / "one.json")), files.plan("zed", file(home / "two.json"))]
    bad = files.Plan(home / "a-file" / "below.json", None, b"{}", None, ())
    with pytest.raises(CliError, match="Nothing was changed"):
        files.write("zed", [*plans, bad])
    assert not (home / "one.json").exists()
    with pytest.raises(CliError, match="nothing to undo"):
        files.undo("zed")


def test_a_second_write_that_fails_leaves_the_first(home):
    one, two = home / "one.json", home / "two.json"
    one.write_text("{}")
    put(one)
    then = tree(home)
    two.write_text("{}")
    bad = files.Plan(home / "two.json" / "below.json", None, b"{}", None, ())
    with pytest.raises(CliError, match="Nothing was changed"):
        files.write("zed", [files.plan("zed", file(one, "newer")), bad])
    assert tree(home) == {**then, "two.json": b"{}"}
    files.undo("zed")
    assert one.read_text() == "{}"


def test_a_backup_that_is_gone_costs_nothing_of_the_file(home):
    path = home / "settings.json"
    path.write_text('{"mine": 1}')
    put(path)
    (home / "settings.json.before-onecard").unlink()
    with pytest.raises(CliError, match="is gone"):
        files.undo("zed")
    put(path, "newer")
    assert read("json", path.read_text()) == {"mine": 1, "onecard": "newer"}
    files.undo("zed")
    assert read("json", path.read_text()) == {"mine": 1, "onecard": "new"}


def test_a_name_of_a_backup_that_is_taken_is_not_used(home):
    path = home / "settings.json"
    path.write_text("{}")
    (home / "settings.json.before-onecard").write_text("of another time")
    put(path)
    files.undo("zed")
    assert (home / "settings.json.before-onecard").read_text() == "of another time"
    assert path.read_text() == "{}"
