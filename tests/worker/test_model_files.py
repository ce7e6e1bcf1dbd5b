"""The one opener of models' files: no device, no pipe, nothing larger than it may be, and no waiting."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.files import model_files
from backends.files.model_files import FileError, MissingError


def link_to(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


STRANGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "endless": (link_to("/dev/zero"), "not a regular file but a device"),
    "random": (link_to("/dev/urandom"), "not a regular file but a device"),
    "terminal": (link_to("/dev/tty"), "device|cannot be opened"),
    "pipe": (os.mkfifo, "not a regular file but a pipe"),
    "socket": (bound, "not a regular file but a socket"),
    "folder": (Path.mkdir, "not a regular file but a folder"),
    "kernel": (link_to("/proc/self/maps"), "one of the kernel's"),
    "kernel log": (link_to("/proc/kmsg"), "kernel's|may not read"),
    "circle": (link_to("x.json"), "links lead in a circle"),
    "sparse": (sparse, "1099511627776 bytes, and 4194304 are the most"),
    "empty": (Path.touch, "is empty. hint"),
    "zeros": (lambda path: path.write_bytes(bytes(99)), "is empty. hint"),
    "deep": (lambda path: path.write_text("[" * 10**6), "nested deeper"),
    "a list": (lambda path: path.write_text("[]"), "not a JSON object"),
    "digits": (lambda path: path.write_text('{"a": ' + "9" * 5000 + "}"), "not JSON"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_file_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, told = STRANGE[kind]
    make(tmp_path / "x.json")

    with pytest.raises(FileError, match=f"x.json .*({told})") as refused:
        model_files.read_object(tmp_path / "x.json")

    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", ""])
def test_a_name_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError) as refused:
        model_files.check(Path(f"{tmp_path}/{name}"))

    assert len(str(refused.value)) < 200


def test_a_file_that_is_missing_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"x.json does not exist"):
        model_files.read_json(tmp_path / "x.json")


def test_a_file_that_grows_behind_its_size_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b" " * 10)

    with model_files.opened(tmp_path / "x.json") as file:
        os.truncate(tmp_path / "x.json", 2**40)
        with pytest.raises(FileError, match="has more, and 100 are the most"):
            file.read(100)


FOLDERS = {name: case for name, case in STRANGE.items() if name in ("endless", "pipe", "socket", "kernel", "sparse")}


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "1_Pooling/config.json", "weights"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_with_one_of_them_is_not_given_to_a_library(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "config.json").write_text("{}")
    FOLDERS[kind][0](tmp_path / name)
    if (kind, name) == ("sparse", "weights"):
        pytest.skip("weights may have any size")

    with pytest.raises(FileError, match=name):
        model_files.check_folder(tmp_path)


def test_a_folder_without_an_end_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "MOST_ENTRIES", 50)
    for n in range(60):
        (tmp_path / f"{n}").touch()

    with pytest.raises(FileError, match="more than 50 files"):
        model_files.check_folder(tmp_path)


def test_nothing_here_leaves_a_thread() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "model-files"]
