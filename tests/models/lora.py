"""LoRA adapters of the demo model with random matrices, as peft saves them and as llama.cpp reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

import demo
from demo.names import gguf_name

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
STRONG = 0.06
"""Of each number of B: greedy answers of the demo become others, and stay texts."""


def build_folder(
    folder: Path, seed: int, *, rank: int = 8, targets: tuple[str, ...] = ALL, strength: float = STRONG, **config: Any
) -> Path:
    """An adapter of the demo as peft's `save_pretrained` leaves it."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, matrix in load_file(demo.HF_PATH / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] in targets:
            out, width = matrix.shape
            tensors[f"base_model.model.{layer}.lora_A.weight"] = _drawn(rng, rank, width, 1 / np.sqrt(width))
            tensors[f"base_model.model.{layer}.lora_B.weight"] = _drawn(rng, out, rank, strength)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, **config}
    told = {"target_modules": list(targets), "base_model_name_or_path": "/no/such/base", **told}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def rewrite(folder: Path, **config: Any) -> Path:
    """The same with other keys in its configuration."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def as_gguf(folder: Path, path: Path, **keys: Any) -> Path:
    """The same adapter as a GGUF file; written by llama.cpp's own package and not by ours."""
    shape = json.loads((demo.HF_PATH / "config.json").read_text())
    heads = {"q_proj": shape["num_attention_heads"], "k_proj": shape["num_key_value_heads"]}
    config = json.loads((folder / "adapter_config.json").read_text())
    writer = gguf.GGUFWriter(path, keys.get("architecture", "llama"))
    writer.add_type(keys.get("kind", "adapter"))
    writer.add_string("adapter.type", keys.get("sort", "lora"))
    writer.add_float32("adapter.lora.alpha", float(config["lora_alpha"]))
    for name, matrix in load_file(folder / "adapter_model.safetensors").items():
        layer, _, side = name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        n_heads = heads.get(layer.rpartition(".")[2], 0) if side == "B" else 0
        placed = _permuted(matrix, n_heads) if n_heads else matrix
        writer.add_tensor(f"{gguf_name(f'{layer}.weight')}.lora_{side.lower()}", np.ascontiguousarray(placed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _drawn(rng: np.random.Generator, rows: int, columns: int, strength: float) -> NDArray[np.float32]:
    return (rng.standard_normal((rows, columns)) * strength).astype(np.float32)


def _permuted(matrix: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Rows as llama.cpp rotates them: pairs beside each other instead of halves of a head."""
    halves = matrix.reshape(n_heads, 2, matrix.shape[0] // n_heads // 2, matrix.shape[1])
    return halves.swapaxes(1, 2).reshape(matrix.shape)
