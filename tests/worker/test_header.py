"""The header reader on sound files: what it says, how fast, what it will not open. Broken ones are in tests/models."""

from __future__ import annotations

import os
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

import demo
from backends.backend import HeaderError
from backends.gguf import header
from backends.gguf.tensor_types import TENSOR_TYPES
from backends.registry import BACKENDS, estimate
from tests.models import broken
from tests.models.shapes import finish
from tests.specs import plan_of

NEWER_THAN_THE_PACKAGE = {42}
"""Q2_0, which the pinned llama.cpp writes and the pinned gguf package does not know."""


def test_type_table_is_that_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind: sizes for kind, sizes in TENSOR_TYPES.items() if kind not in NEWER_THAN_THE_PACKAGE}
    assert ours == theirs


def write_model(path: Path, *, n_vocab: int, layers: int = 1) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_block_count(layers)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv([2] * layers)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}".encode() for i in range(n_vocab)])
    writer.add_token_merges([f"tok en{i}" for i in range(2 * n_vocab)])
    writer.add_token_scores([0.0] * n_vocab)
    writer.add_token_types([1] * n_vocab)
    for i in range(layers):
        writer.add_tensor(f"blk.{i}.attn_q.weight", np.zeros((32, 32), dtype=np.float32))
    finish(writer)
    return path


def test_large_vocabulary_is_walked_over_quickly(tmp_path: Path) -> None:
    path = write_model(tmp_path / "big.gguf", n_vocab=150_000)

    began = time.process_time()
    info = header.read(path)

    assert time.process_time() - began < 0.6  # 0.13 s on an idle machine
    assert info.n_vocab == 150_000
    assert info.longest_token_bytes == len("token149999")
    assert "tokenizer.ggml.tokens" not in info.metadata


def test_figures_of_the_demo_model_are_those_of_the_gguf_package() -> None:
    theirs = gguf.GGUFReader(demo.GGUF_PATH)
    info = header.read(demo.GGUF_PATH)
    assert info.weight_bytes == sum(int(tensor.n_bytes) for tensor in theirs.tensors)
    assert [t.name for t in info.tensors] == [t.name for t in theirs.tensors]
    assert [list(t.shape) for t in info.tensors] == [t.shape.tolist() for t in theirs.tensors]
    assert info.metadata["tokenizer.chat_template"] == theirs.fields["tokenizer.chat_template"].contents()


def test_per_layer_heads_are_summed(tmp_path: Path) -> None:
    info = BACKENDS["gguf"].describe(write_model(tmp_path / "x.gguf", n_vocab=300, layers=3), {})
    kv = estimate(info, plan_of(256, 1, "f16", 0, "cpu")).host.kv
    assert kv == 3 * 2 * (16 + 16) * 256 * 2


def test_more_layers_than_tensors_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(2**31)
    writer.add_tensor("output.weight", np.zeros((32, 32), dtype=np.float32))
    finish(writer)
    with pytest.raises(HeaderError, match="announces 2147483648 layers, but holds 1 tensors"):
        BACKENDS["gguf"].describe(tmp_path / "x.gguf", {})


def test_all_parts_of_a_split_file_count(tmp_path: Path) -> None:
    for part in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-{part:05}-of-00002.gguf", "llama")
        writer.add_uint16("split.no", part - 1)
        writer.add_uint16("split.count", 2)
        writer.add_tensor(f"blk.{part}.w", np.zeros((32, part), dtype=np.float32))
        finish(writer)

    info = header.read(tmp_path / "m-00001-of-00002.gguf")
    assert info.weight_bytes == 32 * 4 + 32 * 2 * 4

    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(HeaderError, match=r"m-00002-of-00002\.gguf does not exist"):
        header.read(tmp_path / "m-00001-of-00002.gguf")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.gguf"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero"), tmp_path):
        with pytest.raises(HeaderError, match="is not a regular file"):
            header.read(path)


def test_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(broken.VALID.encode())
    read_all = os.pread

    def shrinking(fd: int, n_bytes: int, offset: int) -> bytes:
        os.truncate(path, 3)
        return read_all(fd, n_bytes, offset)

    monkeypatch.setattr(os, "pread", shrinking)
    with pytest.raises(HeaderError, match="changed while it was read"):
        header.read(path)
