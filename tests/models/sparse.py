"""Files as large as real models, of which only the header is written: the rest is a hole that takes no disk."""

from __future__ import annotations

import math
import os
from pathlib import Path

import gguf
import numpy as np

from tests.models import shapes
from tests.models.shapes import Shape

MOE_30B = Shape("qwen3moe", 48, 2048, 32, 4, 128, 768, n_vocab=151_936, n_experts=128, n_experts_used=8)
DENSE_14B = Shape("llama", 40, 5120, 40, 8, 128, 17_408, n_vocab=151_936)
DENSE_70B = Shape("llama", 80, 8192, 64, 8, 128, 28_672, n_vocab=128_256)
_ALIGNMENT = 32


def build(path: Path, shape: Shape, kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q4_K) -> Path:
    """Write the header of such a model, with its weights in that type."""
    writer = shapes.begin(path, shape)
    n_bytes = 0
    for name, dims in shapes.tensors(shape).items():
        plain = len(dims) == 1 or name.endswith(("norm.weight", "gate_inp.weight"))
        type_ = gguf.GGMLQuantizationType.F32 if plain else kind
        block, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        size = math.prod(dims) // block * block_bytes
        dtype = np.dtype(np.float32 if plain else np.uint8)
        told = dims if plain else (*dims[:-1], dims[-1] // block * block_bytes)
        writer.add_tensor_info(name, told, dtype, size, raw_dtype=type_)
        n_bytes += -(-size // _ALIGNMENT) * _ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = -(-path.stat().st_size // _ALIGNMENT) * _ALIGNMENT
    os.truncate(path, start + n_bytes)
    return path
