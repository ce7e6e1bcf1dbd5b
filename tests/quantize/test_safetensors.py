"""Bad safetensors and folders are refused before a byte of a tensor is read, each with a sentence."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantize.errors import QuantizeError
from quantize.hf.safetensors import Shard
from quantize.hf.source import opened

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [3], "data_offsets": [16, 22]},
}


def entry(dtype: str, shape: list[Any], start: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write(path: Path, header: Any, data: bytes = b"\0" * 22, *, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def test_good_file_is_read_in_rows(tmp_path: Path) -> None:
    data = np.arange(4, dtype="<f4").tobytes() + np.ones(3, "<f2").tobytes()
    with Shard(write(tmp_path / "x", GOOD, data)) as shard:
        assert shard.rows(shard.tensors["a"], 1, 1).tolist() == [[2.0, 3.0]]
        assert shard.rows(shard.tensors["b"]).tolist() == [1.0, 1.0, 1.0]


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "header of 2^63 bytes": (GOOD, {"length": 2**63}, "announces a header of 9223372036854775808 bytes"),
    "header of 101 MB": (GOOD, {"length": 101 * 10**6}, "announces a header"),
    "header longer than the file": (GOOD, {"length": 10**4}, "it is cut or no safetensors"),
    "no JSON": (b"{'a'}", {}, "is not JSON"),
    "not UTF-8": (b"\xff\xfe", {}, "is not JSON"),
    "deep JSON": (b"[" * 100_000, {}, "is nested deeper"),
    "a list": (b"[]", {}, "not a table"),
    "same key twice": (b'{"a": {}, "a": {}}', {}, "names 'a' twice"),
    "too many tensors": ({f"t{i}": {} for i in range(70_000)}, {}, "holds 70000 tensors"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, {}, "has no dtype"),
    "unknown dtype": ({"a": entry("F7", [1], 0, 4)}, {}, "unknown number type 'F7'"),
    "negative shape": ({"a": entry("F32", [-1], 0, 4)}, {}, "impossible shape"),
    "huge shape": ({"a": entry("F32", [2**62, 2**62], 0, 4)}, {}, "needs"),
    "shape of booleans": ({"a": entry("F32", [True], 0, 4)}, {}, "impossible shape"),
    "wrong length": ({"a": entry("F32", [2], 0, 4)}, {}, "needs 8 bytes"),
    "beyond the file": ({"a": entry("F32", [100], 0, 400)}, {}, "ends at byte .* it is cut"),
    "overlap": ({"a": entry("F32", [4], 0, 16), "b": entry("F16", [7], 8, 22)}, {}, "overlap"),
    "gap": ({"a": entry("F32", [2], 0, 8), "b": entry("F16", [3], 16, 22)}, {}, "leave a gap"),
    "bytes left over": ({"a": entry("F32", [4], 0, 16)}, {}, "do not fill it"),
    "offsets reversed": ({"a": entry("F32", [4], 16, 0)}, {}, "needs 16 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_header_is_a_sentence(tmp_path: Path, name: str) -> None:
    header, options, sentence = BAD[name]
    with pytest.raises(QuantizeError, match=sentence):
        Shard(write(tmp_path / "x.safetensors", header, **options))


def test_mutants_are_read_or_refused(tmp_path: Path) -> None:
    original = write(tmp_path / "good", GOOD).read_bytes()
    pick = random.Random(1)
    for i in range(5000):
        data = bytearray(original)
        for _ in range(pick.randint(1, 4)):
            data[pick.randrange(len(data))] = pick.randrange(256)
        data = data[: pick.randrange(len(data))] if i % 5 == 0 else data
        path = tmp_path / "mutant"
        path.write_bytes(data)
        try:
            with Shard(path) as shard:
                for stored in shard.tensors.values():
                    shard.rows(stored)
        except QuantizeError:
            pass


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"holds no config.json"), opened(tmp_path):
        pass


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": "../evil.safetensors"}}, "no file of this folder"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no file of this folder"),
        ({"weight_map": {"a": 5}}, "no file of this folder|cannot be read"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "1 of 1 shards are missing: model-00001"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
    ],
)
def test_bad_index_is_a_sentence(tmp_path: Path, index: dict[str, Any], sentence: str) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(QuantizeError, match=sentence), opened(tmp_path):
        pass


def test_tensor_that_the_index_promises_and_no_shard_has_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    write(tmp_path / "model-1.safetensors", GOOD)
    weight_map = {"a": "model-1.safetensors", "c": "model-1.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(QuantizeError, match="no shard holds, the first 'c'"), opened(tmp_path):
        pass


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(QuantizeError, match="which can run code"), opened(tmp_path):
        pass
