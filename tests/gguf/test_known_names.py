"""The names that a file may have, held against the installed llama.cpp: it takes each of them, and has no others."""

from __future__ import annotations

import re
from pathlib import Path

import llama_cpp
import pytest

from backends.backend import version_of_package
from backends.gguf import known
from backends.gguf.library_log import LibraryLog
from tests.models import odd_files

pytestmark = pytest.mark.engine

LIBRARY = Path(llama_cpp.__file__).parent / "lib" / "libllama.so"
NAME = re.compile(rb"[a-z0-9][a-zA-Z0-9._-]+")


def refusal(path: Path, log: LibraryLog) -> str:
    """What llama.cpp says against the architecture or the vocabulary; empty where it takes them."""
    log.problems.clear()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    pointer = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    path.unlink()
    if pointer:
        llama_cpp.llama_model_free(pointer)
        return ""
    return " ".join(log.problems)


@pytest.fixture(scope="module")
def log() -> LibraryLog:
    found = LibraryLog()
    found.install()
    llama_cpp.llama_backend_init()
    return found


def named_between(first: bytes, last: bytes) -> set[str]:
    """The texts that lie between two texts of the library."""
    raw = LIBRARY.read_bytes()
    start = raw.index(b"\0" + first + b"\0")
    part = raw[start : raw.index(b"\0" + last + b"\0", start)]
    return {text.decode() for text in part.split(b"\0") if NAME.fullmatch(text)}


def test_the_names_are_of_the_pinned_version() -> None:
    assert version_of_package("llama-cpp-python") == f"llama-cpp-python-{known.VERSION}"


def test_every_architecture_is_one_of_the_library_and_it_has_no_others(tmp_path: Path, log: LibraryLog) -> None:
    assert named_between(b"clip", b"(unknown)") <= known.ARCHITECTURES
    refused = [
        name
        for name in known.ARCHITECTURES
        if "unknown model architecture" in refusal(odd_files.build(tmp_path / "m", arch=name, weights=False), log)
    ]
    assert refused == []
    assert "unknown model arch" in refusal(odd_files.build(tmp_path / "m", arch="imaginary", weights=False), log)


def test_every_pre_tokenizer_is_one_of_the_library_and_it_has_no_others(tmp_path: Path, log: LibraryLog) -> None:
    assert named_between(b"llama-v3", b"superbpe") <= known.PRE_TOKENIZERS
    refused = {
        name: why
        for name in known.PRE_TOKENIZERS
        if (why := refusal(odd_files.build(tmp_path / "m", pre=name, weights=False), log))
    }
    assert refused == {}
    assert "unknown pre-tok" in refusal(odd_files.build(tmp_path / "m", pre="imaginary", weights=False), log)


def test_every_tokenizer_is_one_of_the_library(tmp_path: Path, log: LibraryLog) -> None:
    told = {
        name: refusal(odd_files.build(tmp_path / "m", model=name, weights=False), log)
        for name in (*known.MERGING, "test", "imaginary")
    }
    assert {name for name, why in told.items() if "unknown tokenizer" in why} == {"imaginary"}
    assert {"llama", "bert", "t5", "rwkv", "plamo2", "test"} == known.TOKENIZERS - known.MERGING
    raw = LIBRARY.read_bytes()
    assert all(raw.count(f"{name}\0".encode()) for name in known.TOKENIZERS)
