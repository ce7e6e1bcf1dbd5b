"""What adapters' files are refused for, each by name and with what to do, before anything is loaded."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import demo
from backends.backend import HeaderError
from backends.files.adapters import Adapter
from backends.registry import BACKENDS
from tests.adapters.passes import options
from tests.embeddings.models import minilm
from tests.models import lora
from tests.specs import plan_of

WEIGHTS = "adapter_model.safetensors"
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lora.build_folder(tmp_path / "pirate", 1, targets=("q_proj", "k_proj"))


def described(backend: str, path: Path) -> Adapter:
    base = demo.HF_PATH if backend == "bnb" else demo.GGUF_PATH
    (found,) = BACKENDS[backend].describe(base, options({"pirate": path})).adapters
    return found


def refused(backend: str, path: Path) -> str:
    return described(backend, path).problem or ""


def with_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tensors = dict(load_file(folder / WEIGHTS))
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    return folder


def resized(side: str, shape: tuple[int, int]) -> Callable[[dict[str, Any]], object]:
    return lambda t: t.update({f"{Q_PROJ}.lora_{side}.weight": np.zeros(shape, dtype=np.float32)})


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def piped(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


def renamed(old: str, new: str) -> Callable[[Path], object]:
    return lambda f: with_tensors(f, lambda t: t.update({new: t.pop(old)}))


def of_rank(rank: int) -> Callable[[Path], object]:
    def resize(folder: Path) -> None:
        matrices = {"A": np.zeros((rank, 192), np.float32), "B": np.zeros((192, rank), np.float32)}
        save_file({f"{Q_PROJ}.lora_{side}.weight": matrix for side, matrix in matrices.items()}, folder / WEIGHTS)
        lora.rewrite(folder, r=rank)

    return resize


CONFIGS: MappingProxyType[str, tuple[dict[str, Any], str]] = MappingProxyType(
    {
        "another kind": ({"peft_type": "IA3"}, r"peft_type = 'IA3'.*hint: merge"),
        "another task": ({"task_type": "SEQ_CLS"}, r"task SEQ_CLS.*generates text"),
        "DoRA": ({"use_dora": True}, r"DoRA.*hint: merge"),
        "biases": ({"bias": "all"}, r"biases \(bias = all\)"),
        "whole layers": ({"modules_to_save": ["lm_head"]}, r"modules_to_save.*hint: merge"),
        "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "activated by certain tokens"),
        "a changed base": ({"init_lora_weights": "pissa_niter_4"}, r"changed base weights.*hint: save it"),
        "no number": ({"lora_alpha": "much"}, r"lora_alpha = 'much', which is no number"),
        "not finite": ({"lora_alpha": float("nan")}, "no number"),
        "another rank": ({"r": 16}, r"rank 8 and 8, adapter_config.json says 16"),
        "no number of 32 bits": (
            {"lora_alpha": 10**400},
            "lora_alpha = a number of too many digits, which is no number",
        ),
        "a rank without end": ({"r": 1e308}, r"r = 1e\+308, which is no number"),
        "no rank": ({"r": 0}, "rank 8 and 8, adapter_config.json says 0"),
        "half a rank": ({"r": 8.5}, "r = 8.5, which is no count"),
        "a scale by a word": ({"use_rslora": "yes"}, "use_rslora = 'yes', and true or false is meant"),
        "patterns that are none": ({"rank_pattern": ["q_proj"]}, "rank_pattern = .* is no table"),
        "a flood of patterns": ({"alpha_pattern": {f"l{n}": 8 for n in range(10**5)}}, "100000 patterns.*2048 are the"),
        "a costly pattern": ({"alpha_pattern": {"(a+)+$": 4}}, r"pattern '\(a\+\)\+\$'"),
    }
)
FOLDERS: MappingProxyType[str, tuple[Callable[[Path], object], str]] = MappingProxyType(
    {
        "pickles": (pickled, r"pickled \(adapter_model.bin\).*can run code.*hint"),
        "no weights": (lambda f: (f / WEIGHTS).unlink(), r"has no adapter_model.safetensors.*hint"),
        "no configuration": (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter_config.json"),
        "no JSON": (lambda f: (f / "adapter_config.json").write_text("{"), "is not JSON"),
        "cut": (lambda f: os.truncate(f / WEIGHTS, 2000), "it is cut or wrong|announces a header"),
        "a lie": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 2**40) + b"{}"), "announces a header"),
        "a pipe": (piped, "is not a regular file but a pipe"),
        "too few inputs": (lambda f: with_tensors(f, resized("A", (8, 96))), r"96 inputs and 192 outputs.*has 192 and"),
        "too many outputs": (lambda f: with_tensors(f, resized("B", (384, 8))), r"384 outputs.*very base\?"),
        "half a pair": (
            lambda f: with_tensors(f, lambda t: t.pop(f"{Q_PROJ}.lora_A.weight")),
            "only one matrix of its pair",
        ),
        "layers the base has not": (
            lambda f: [
                renamed(f"{Q_PROJ}.lora_{s}.weight", f"{Q_PROJ.replace('.0.', '.90.')}.lora_{s}.weight")(f)
                for s in "AB"
            ],
            r"layers\.90.*no linear layer of this model",
        ),
        "an embedding": (
            renamed(f"{Q_PROJ}.lora_A.weight", "base_model.model.model.embed_tokens.lora_embedding_A"),
            "lora_embedding_A.*no matrix of a LoRA pair",
        ),
        "no columns": (of_rank(0), "rank 0 and 0, adapter_config.json says 0, and at most 1024"),
        "too many columns": (of_rank(2000), "rank 2000 and 2000, adapter_config.json says 2000, and at most 1024"),
        "a layer twice": (
            lambda f: with_tensors(
                f,
                lambda t: [
                    t.update({f"base_model.model.lm_head{inner}.weight": np.zeros((1200, 192), np.float16)})
                    for inner in ("", ".base_layer")
                ],
            ),
            "carries lm_head twice",
        ),
        "nothing": (lambda f: save_file({}, f / WEIGHTS), "is empty"),
    }
)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_no_plain_lora_is_told_by_its_configuration(folder: Path, name: str) -> None:
    keys, sentence = CONFIGS[name]

    lora.rewrite(folder, **keys)

    assert re.search(sentence, refused("bnb", folder))


@pytest.mark.parametrize("name", FOLDERS)
def test_files_that_are_no_sound_adapter_of_the_base_are_told(folder: Path, name: str) -> None:
    damage, sentence = FOLDERS[name]

    damage(folder)

    assert re.search(sentence, refused("bnb", folder))


@pytest.mark.parametrize("elsewhere", ["../../etc/passwd", "/etc/passwd", "hf://someone/model", "https://127.0.0.1/"])
def test_a_sound_one_is_told_with_its_figures_and_its_base_is_not_looked_for(folder: Path, elsewhere: str) -> None:
    lora.rewrite(folder, base_model_name_or_path=elsewhere, revision="../..")
    found = described("bnb", folder)

    assert (found.problem, found.rank, found.n_targets) == (None, 8, 8)
    n_values = 4 * (8 * 192 + 8 * 192 + 8 * 192 + 8 * 64)
    assert (found.n_values, found.n_bytes) == (n_values, 4 * n_values)


def test_gguf_adapters_are_held_against_the_models_header(folder: Path, tmp_path: Path) -> None:
    fits = described("gguf", lora.as_gguf(folder, tmp_path / "fits.gguf"))
    assert (fits.problem, fits.rank, fits.n_targets) == (None, 8, 8)

    other = lora.as_gguf(folder, tmp_path / "other.gguf", architecture="qwen3")
    assert "made for qwen3, and this model is llama" in refused("gguf", other)
    model = lora.as_gguf(folder, tmp_path / "model.gguf", kind="model")
    assert "no LoRA adapter" in refused("gguf", model)
    wide = lora.as_gguf(with_tensors(folder, resized("A", (8, 96))), tmp_path / "wide.gguf")
    assert "96 inputs" in refused("gguf", wide)
    assert "is not GGUF" in refused("gguf", folder / "adapter_config.json")


def test_each_backend_tells_how_to_get_the_other_ones_adapter(folder: Path, tmp_path: Path) -> None:
    assert "hint: `onecard quantize" in refused("gguf", folder)
    assert "takes adapters as folders" in refused("bnb", lora.as_gguf(folder, tmp_path / "a.gguf"))
    assert "there is no file or folder" in refused("bnb", tmp_path / "nowhere")
    assert "is not in the local cache. hint: `hf download org/pirate`" in refused("bnb", Path("hf:org/pirate"))


def test_bytes_of_sound_adapters_are_part_of_the_estimate(folder: Path, tmp_path: Path) -> None:
    for backend, path in (("bnb", folder), ("gguf", lora.as_gguf(folder, tmp_path / "a.gguf"))):
        base = demo.HF_PATH if backend == "bnb" else demo.GGUF_PATH
        of = BACKENDS[backend]
        header = of.describe(base, options({"pirate": path, "gone": tmp_path / "gone"}))
        told = of.estimate(header, plan_of(512, 1)).host
        without = of.estimate(of.describe(base, {}), plan_of(512, 1)).host
        n_bytes = told.by_name["adapters"]
        assert n_bytes >= 4 * header.adapters[0].n_values
        assert told.total_bytes - without.total_bytes == n_bytes


def test_a_model_of_vectors_takes_none(tmp_path: Path) -> None:
    with pytest.raises(HeaderError, match="adapters are for models that generate text"):
        BACKENDS["bnb"].describe(minilm(), options({"a": tmp_path}))
