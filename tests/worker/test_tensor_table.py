"""Files of tensors whose table says two things: all readers refuse them in the same words, and so does the library."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from backends.files import tensors
from backends.files.model_files import FileError
from quantize.errors import QuantizeError
from quantize.hf.safetensors import Shard


def entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}


def twice(one: dict[str, Any], other: dict[str, Any]) -> bytes:
    return b'{"a": %s, "a": %s}' % (json.dumps(one).encode(), json.dumps(other).encode())


def written(file: Path, table: dict[str, Any] | bytes, n_bytes: int) -> Path:
    raw = table if isinstance(table, bytes) else json.dumps(table).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(n_bytes))
    return file


ODD: dict[str, tuple[dict[str, Any] | bytes, int, str]] = {
    "shared bytes": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "tensors 'a' and 'b' overlap in x.safetensors"),
    "the same bytes": ({"a": entry(0, 8), "b": entry(0, 8)}, 8, "tensors 'a' and 'b' overlap in x.safetensors"),
    "a hole": ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "tensors 'a' and 'b' leave a gap in x.safetensors"),
    "a hole before all": ({"a": entry(4, 12)}, 12, "the tensors of x.safetensors do not fill it"),
    "bytes behind all": ({"a": entry(0, 8)}, 12, "the tensors of x.safetensors do not fill it"),
    "no tensors": ({}, 4, "the tensors of x.safetensors do not fill it"),
    "a cut": ({"a": entry(0, 80)}, 8, "tensor 'a' ends at byte 80 of the data, and x.safetensors holds 8: it is cut"),
    "a name twice": (twice(entry(0, 8), entry(8, 16)), 16, "the header of x.safetensors names 'a' twice"),
    "a field twice": (
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        8,
        "the header of x.safetensors names 'dtype' twice",
    ),
    "a list": (b"[]", 8, "the header of x.safetensors is not a table of tensors"),
    "no JSON": (b"{'a'}", 8, "the header of x.safetensors is not JSON"),
}


@pytest.mark.parametrize("name", ODD)
def test_every_reader_refuses_it_in_the_same_words(name: str, tmp_path: Path) -> None:
    """Given tensors that share bytes, leave some to none, or a name that is there twice, then no reader takes it."""
    table, n_bytes, sentence = ODD[name]
    file = written(tmp_path / "x.safetensors", table, n_bytes)
    with pytest.raises(FileError, match=sentence) as ours:
        tensors.of_file(file)
    with pytest.raises(QuantizeError) as theirs:
        Shard(file)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ODD)
def test_so_does_the_library(name: str, tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors", reason="an extra brings it")
    table, n_bytes, _ = ODD[name]
    with pytest.raises(library.SafetensorError):
        library.deserialize(written(tmp_path / "x.safetensors", table, n_bytes).read_bytes())


def test_tensors_in_any_order_and_empty_ones_are_read(tmp_path: Path) -> None:
    """Given tensors that are named in another order than they lie, and one without numbers between them, then so."""
    table = {"b": entry(8, 16), "a": entry(0, 8), "empty": entry(8, 8), "__metadata__": {"format": "pt"}}
    file = written(tmp_path / "x.safetensors", table, 16)
    assert {one.name: one.n_bytes for one in tensors.of_file(file)[0]} == {"a": 8, "b": 8, "empty": 0}
    with Shard(file) as shard:
        assert set(shard.tensors) == {"a", "b", "empty"}
