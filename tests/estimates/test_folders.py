"""Hugging Face folders: headers that lie are refused, weights are estimated to the byte that bitsandbytes takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.bnb.arithmetic import tensor_bytes
from backends.bnb.header import read
from backends.messages.plans import Device
from backends.packed import packed_bytes
from backends.plan import Wish
from backends.registry import BACKENDS, estimate
from demo import HF_PATH
from tests.specs import plan_of

ROOT = Path(__file__).resolve().parents[2]
_SINGLE = "model.safetensors"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "vocab_size": 100,
    "dtype": "bfloat16",
}
PLAN = plan_of(1024, 2, "f16", 0, "cpu")


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    """A file of zeros with these tensors: dtype, shape, bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, n_bytes) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(end)


MATRIX = {"model.layers.0.mlp.up_proj.weight": ("BF16", [128, 64], 16384)}
EMBEDDING = {"model.embed_tokens.weight": ("F32", [100, 64], 25600)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / _SINGLE).write_bytes(safetensors(MATRIX | EMBEDDING))
    return tmp_path


@pytest.mark.parametrize(
    ("dtype", "quantization", "device", "kind"),
    [
        ("float16", "none", "cpu", "f32"),
        ("float16", "bnb-4bit", "cpu", "bf16"),
        ("bfloat16", "none", "cpu", "bf16"),
        ("float16", "none", "cuda", "f16"),
        ("float32", "bnb-8bit", "cuda", "f32"),
        (None, "none", "cuda", "f32"),
    ],
)
def test_the_cache_has_the_type_that_is_computed_in(
    folder: Path, dtype: str | None, quantization: str, device: Device, kind: str
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "dtype": dtype}))
    info = read(folder, quantization)
    (plan, *_) = BACKENDS["bnb"].plans(info, Wish(1024, 2, "q8_0", None, device))

    assert plan.kv_type == kind


def test_embeddings_stay_in_16_bits_and_matrices_are_packed(folder: Path) -> None:
    plain, int8, nf4 = (estimate(read(folder, q), PLAN).host.weights for q in ("none", "bnb-8bit", "bnb-4bit"))
    embedding = 100 * 64 * 2
    assert plain == embedding + 128 * 64 * 2
    assert int8 == embedding + 128 * 64 + 128 * 4
    assert nf4 == embedding + packed_bytes(128 * 64, double=True)


def test_cache_follows_the_configuration(folder: Path) -> None:
    assert estimate(read(folder), PLAN).host.kv == 2 * (2 * 2 * 16 * 2) * 1024 * 2


def test_gpt2s_own_names_mean_what_others_call_otherwise(folder: Path) -> None:
    """Served with as much context as it has positions, and its cache and activations are foreseen."""
    own = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": None}
    named = {**CONFIG, "num_key_value_heads": 4, "intermediate_size": 256, "max_position_embeddings": 256}
    estimates = []
    for config in ({**own, "vocab_size": 100, "dtype": "bfloat16"}, named):
        (folder / "config.json").write_text(json.dumps(config))
        info = read(folder)
        assert (info.n_ctx_train, info.n_layers) == (256, 2)
        estimates.append(estimate(info, plan_of(256, 2, "f16", 0, "cpu")).host)
    assert estimates[0].kv == estimates[1].kv > 0
    assert estimates[0].total_bytes == estimates[1].total_bytes


def test_windowed_layers_keep_their_window(folder: Path) -> None:
    windowed = {**CONFIG, "sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"]}
    (folder / "config.json").write_text(json.dumps(windowed))
    assert estimate(read(folder), PLAN).host.kv == (2 * 2 * 16 * 2) * (768 + 1024) * 2


def test_files_of_an_index_are_all_counted(folder: Path) -> None:
    (folder / _SINGLE).unlink()
    for i, tensors in enumerate((MATRIX, EMBEDDING)):
        (folder / f"part-{i}.safetensors").write_bytes(safetensors(tensors))
    weight_map = {"a": "part-0.safetensors", "b": "part-1.safetensors"}
    (folder / f"{_SINGLE}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert {tensor.name for tensor in read(folder).tensors} == {*MATRIX, *EMBEDDING}


def test_checkpoint_stored_in_4_bits_takes_what_it_stores(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "quantization_config": {"load_in_4bit": True}}))
    (folder / _SINGLE).write_bytes(safetensors({"model.layers.0.mlp.up_proj.weight": ("U8", [4096, 1], 4096)}))
    assert estimate(read(folder), PLAN).host.weights == 4096


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "announces a header"),
        ((2**40).to_bytes(8, "little"), "announces a header"),
        ((2).to_bytes(8, "little") + b"[]", "not a table of tensors"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not JSON"),
        (safetensors(MATRIX)[:-1], "cut or wrong"),
        (safetensors({"w": ("BF16", [2**40, 2**40], 4)}), "cut or wrong"),
        (safetensors({"w": ("BF16", [-2, 2], 4)}), "not understood"),
        (safetensors({"w": ("X9", [2], 4)}), "not understood"),
    ],
)
def test_weights_that_lie_are_refused_with_a_sentence(folder: Path, raw: bytes, said: str) -> None:
    (folder / _SINGLE).write_bytes(raw)
    with pytest.raises(HeaderError, match=said):
        read(folder)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd"])
def test_index_that_leaves_its_folder_is_refused(folder: Path, name: str) -> None:
    (folder / f"{_SINGLE}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(HeaderError, match="outside"):
        read(folder)


def test_file_that_would_block_is_refused(folder: Path) -> None:
    (folder / _SINGLE).unlink()
    os.mkfifo(folder / _SINGLE)
    with pytest.raises(HeaderError, match="not a regular file"):
        read(folder)


QUANTIZED: list[dict[str, Any]] = [
    {},
    {"load_in_8bit": True},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
]


@pytest.fixture(scope="module")
def taken_bytes() -> list[int]:
    """What the demo model's weights take in each of these ways, told by one child, which imports both libraries."""
    script = Path(__file__).with_name("measure_folder.py")
    done = subprocess.run(
        [sys.executable, str(script), str(HF_PATH), json.dumps(QUANTIZED)],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found: list[int] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.engine
@pytest.mark.parametrize("number", range(len(QUANTIZED)))
def test_weights_are_estimated_to_the_byte_that_bitsandbytes_takes(taken_bytes: list[int], number: int) -> None:
    folder = replace(read(Path(HF_PATH)), quantization=QUANTIZED[number])

    assert sum(tensor_bytes(tensor, folder, "cuda") for tensor in folder.tensors) == taken_bytes[number]
