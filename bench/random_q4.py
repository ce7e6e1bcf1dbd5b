"""Models of a real size with random weights, written directly as Q4_K_M: gigabytes in seconds, without a source file.

Blocks have fixed scales and random values, so that a tensor has the spread asked for and a mean of about zero. Layouts
are llama.cpp's (ggml-common.h: block_q4_K, block_q6_K); which tensors get six bits is its Q4_K_M mix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from bench.model import Shape, describe, is_text

SHAPES = {
    "tiny": Shape(n_layers=4, n_embd=256, n_heads=4, n_heads_kv=2, n_ff=768),
    "3b": Shape(n_layers=28, n_embd=3072, n_heads=24, n_heads_kv=8, n_ff=8192, n_vocab=128256),
    "8b": Shape(n_layers=32, n_embd=4096, n_heads=32, n_heads_kv=8, n_ff=14336, n_vocab=128256),
}
"""`3b` and `8b` are Llama 3's, with 8192 tokens of context."""
BLOCK = 256
"""Weights in a block of either type."""
_SCALE_4, _SCALE_6 = 32, 16
_STD_4 = _SCALE_4 * math.sqrt((16**2 - 1) / 12)
_STD_6 = _SCALE_6 * math.sqrt((64**2 - 1) / 12)
"""Spread of a block's weights when its factor `d` is 1."""


@dataclass(frozen=True)
class Tensor:
    """A matrix of the file: its name, shape, type, and the standard deviation of its weights (0: all ones)."""

    name: str
    rows: int
    columns: int
    type: Type
    std: float

    @property
    def bytes_shape(self) -> tuple[int, ...]:
        """Of its data in the file, in bytes; float32 vectors in numbers."""
        if self.type is Type.F32:
            return (self.columns,)
        n_weights, n_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return (self.rows, self.columns // n_weights * n_bytes)


def write(target: Path, shape: Shape, *, seed: int = 1) -> None:
    """Write the model; takes as long as its bytes take to write."""
    writer = gguf.GGUFWriter(target, "llama")
    chosen = is_text(describe(writer, shape))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for tensor in tensors(shape):
        n_bytes = math.prod(tensor.bytes_shape) * (4 if tensor.type is Type.F32 else 1)
        kind = np.dtype(np.float32 if tensor.type is Type.F32 else np.uint8)
        writer.add_tensor_info(tensor.name, tensor.bytes_shape, kind, n_bytes, raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.Generator(np.random.SFC64(seed))
    for tensor in tensors(shape):
        data = values(tensor, rng)
        if tensor.name == "output.weight":
            data[~chosen] = 0  # a zero factor makes zero weights
        writer.write_tensor_data(data)
    writer.close()


def tensors(shape: Shape) -> Iterator[Tensor]:
    """All of them, in the order of the file."""
    n_embd, n_kv = shape.n_embd, shape.n_heads_kv * shape.head_size
    branch = (2 * shape.n_layers) ** -0.5

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0, kind: Type = Type.Q4_K) -> Tensor:
        return Tensor(f"{name}.weight", rows, columns, kind, gain / columns**0.5)

    def ones(name: str) -> Tensor:
        return Tensor(f"{name}.weight", 1, n_embd, Type.F32, 0.0)

    yield matrix("token_embd", shape.n_vocab, n_embd, n_embd**0.5)
    for layer in range(shape.n_layers):
        name, more = f"blk.{layer}.", Type.Q6_K if has_more_bits(layer, shape.n_layers) else Type.Q4_K
        yield ones(name + "attn_norm")
        yield matrix(name + "attn_q", n_embd, n_embd)
        yield matrix(name + "attn_k", n_kv, n_embd)
        yield matrix(name + "attn_v", n_kv, n_embd, kind=more)
        yield matrix(name + "attn_output", n_embd, n_embd, branch)
        yield ones(name + "ffn_norm")
        yield matrix(name + "ffn_gate", shape.n_ff, n_embd)
        yield matrix(name + "ffn_up", shape.n_ff, n_embd)
        yield matrix(name + "ffn_down", n_embd, shape.n_ff, 2 * branch, more)
    yield ones("output_norm")
    yield matrix("output", shape.n_vocab, n_embd, 2.5, Type.Q6_K)


def has_more_bits(layer: int, n_layers: int) -> bool:
    """llama.cpp's `use_more_bits`: the first and last eighth, and every third between."""
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2


def values(tensor: Tensor, rng: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.float32]:
    """The tensor's data: `bytes_shape` uint8, or float32 ones."""
    if tensor.type is Type.F32:
        return np.ones(tensor.columns, np.float32)
    n_bytes = gguf.GGML_QUANT_SIZES[tensor.type][1]
    n_blocks = tensor.rows * tensor.columns // BLOCK
    blocks = np.frombuffer(bytearray(rng.bytes(n_blocks * n_bytes)), np.uint8).reshape(n_blocks, n_bytes)
    if tensor.type is Type.Q4_K:
        factor = tensor.std / _STD_4
        blocks[:, :4] = np.array([factor, 7.5 * factor], np.float16).view(np.uint8)
        # Six-bit scales and minima, all 32: four bytes each of low parts, then the rest of the last four.
        blocks[:, 4:16] = [_SCALE_4 | (_SCALE_4 >> 4) << 6] * 8 + [0] * 4
    else:
        blocks[:, 192:208] = _SCALE_6
        blocks[:, 208:] = np.array([tensor.std / _STD_6], np.float16).view(np.uint8)
    return blocks.reshape(tensor.bytes_shape)
