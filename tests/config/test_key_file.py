"""API keys in a file."""

import os

import pytest

from server.settings.key_file import KeyFileError, read_keys


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# for the editor\nsesame\n\n  open-it  \n")
    file.chmod(0o600)
    return file


def test_one_key_per_line(key_file):
    assert read_keys(key_file) == (["sesame", "open-it"], [], {})


def test_an_admin_key_is_marked_as_one(key_file):
    key_file.write_text("one\nadmin two\n  admin\tthree \n")
    assert read_keys(key_file) == (["one"], ["two", "three"], {})


def test_a_key_may_have_a_name(key_file):
    key_file.write_text("one\nanna two\n")
    assert read_keys(key_file) == (["one"], [], {"anna": "two"})


@pytest.mark.parametrize(
    ("mode", "good"), [(0o400, True), (0o600, True), (0o640, True), (0o660, False), (0o604, False), (0o602, False)]
)
def test_others_must_not_reach_it(key_file, mode, good):
    key_file.chmod(mode)
    if good:
        assert read_keys(key_file)
    else:
        with pytest.raises(KeyFileError, match=r"hint: chmod 600"):
            read_keys(key_file)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only this\n",
        b"anna two\nanna words\n",
        b"three words here\n",
        b"admin two words\n",
        b"sk-app\nadmin\n",
        "schlüssel\n".encode(),
        b"a\x00b\n",
        b"x\n" * 40_000,
    ],
)
def test_what_holds_no_keys_is_refused_without_showing_it(key_file, content):
    key_file.write_bytes(content)
    with pytest.raises(KeyFileError) as caught:
        read_keys(key_file)
    assert "words" not in str(caught.value)
    assert "schl" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", ".", "pipe"):
        with pytest.raises(KeyFileError):
            read_keys(tmp_path / name)
