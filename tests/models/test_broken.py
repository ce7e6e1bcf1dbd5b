"""Broken files: the header reader refuses what it can with its own error, whatever the bytes are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import struct
import time
from pathlib import Path

import pytest

from backends.backend import HeaderError
from backends.gguf import header
from tests.models import broken

AT_THE_HEADER = [case for case in broken.TABLE if case.judge == "header"]
IN_THE_MODEL = [case for case in broken.TABLE if case.judge == "engine"]


def read_or_refuse(path: Path) -> None:
    """Any error but the reader's own is a failed test."""
    with contextlib.suppress(HeaderError):
        look_at(path)


def look_at(path: Path) -> None:
    """Read a header and everything the server asks of it."""
    info = header.read(path)
    numbers = (info.n_ctx_train, info.n_layers, info.n_vocab, info.weight_bytes, info.longest_token_bytes)
    assert all(isinstance(number, int) for number in numbers)
    assert isinstance(info.architecture, str)


def test_the_file_around_which_the_faults_are_built_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(broken.VALID.encode())

    info = header.read(path)

    assert (info.architecture, info.n_layers, info.n_ctx_train) == ("llama", 1, 64)
    assert [(tensor.name, tensor.shape) for tensor in info.tensors] == [("token_embd.weight", (32, 4))]


def test_names_are_unique() -> None:
    assert len({case.name for case in broken.TABLE}) == len(broken.TABLE)


@pytest.mark.parametrize("case", AT_THE_HEADER, ids=lambda case: case.name)
def test_header_is_refused_with_a_sentence(case: broken.Broken, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(case.make())

    began = time.process_time()
    with pytest.raises(HeaderError) as refusal:
        look_at(path)

    assert time.process_time() - began < 1
    assert len(str(refusal.value).split()) >= 4
    assert str(tmp_path) not in str(refusal.value)


@pytest.mark.parametrize("case", IN_THE_MODEL, ids=lambda case: case.name)
def test_header_of_a_broken_model_is_read_or_refused(case: broken.Broken, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(case.make())
    read_or_refuse(path)


def test_model_cut_anywhere_is_refused(canary_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for length, content in broken.cuts(canary_path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(HeaderError):
            look_at(path)
        assert path.stat().st_size == length


@pytest.mark.parametrize("seed", range(8))
def test_mutated_header_raises_nothing_but_its_own_error(seed: int, canary_path: Path, tmp_path: Path) -> None:
    """Random bytes, words of interesting values, and moved blocks within the part before the tensors' data."""
    whole = canary_path.read_bytes()
    n_header = len(whole) - sum(tensor.n_bytes for tensor in header.read(canary_path).tensors)
    rng = random.Random(seed)
    path = tmp_path / "x.gguf"
    for _ in range(40):
        mutant = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(n_header - 8)
            if rng.random() < 0.5:
                mutant[at] = rng.randrange(256)
            else:
                mutant[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]))
        path.write_bytes(mutant)
        read_or_refuse(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_hyperparameter_that_is_no_count_raises_nothing_else(value: float, tmp_path: Path) -> None:
    others = tuple(entry for entry in broken.VALID.pairs if b"block_count" not in entry)
    count = broken.pair(b"llama.block_count", 12, struct.pack("<d", value))
    path = tmp_path / "x.gguf"
    path.write_bytes(dataclasses.replace(broken.VALID, pairs=(*others, count)).encode())
    read_or_refuse(path)


def test_fifo_and_folder_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name in ("pipe.gguf", "folder.gguf", "missing.gguf"):
        with pytest.raises(HeaderError):
            header.read(tmp_path / name)
