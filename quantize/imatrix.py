"""The importance matrix as a file: per weight matrix the mean square of what is fed into each of its columns.

Reads and writes the GGUF form of llama.cpp's imatrix tool: `NAME.in_sum2` (sums of squares) and `NAME.counts`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from backends.backend import HeaderError
from backends.gguf import header
from backends.gguf.info import HeaderInfo
from quantize.errors import QuantizeError

_SUMS, _COUNTS = ".in_sum2", ".counts"
_COUNT_KEY, _SIZE_KEY, _DATA_KEY = "imatrix.chunk_count", "imatrix.chunk_size", "imatrix.datasets"


@dataclass(frozen=True)
class Sums:
    """Of one weight matrix, or of a stack of expert matrices."""

    squares: npt.NDArray[np.float32]
    """`(n_matrices, n_columns)`: sums of squared inputs."""
    counts: npt.NDArray[np.float32]
    """`(n_matrices,)`: how many vectors were summed."""

    def means(self) -> npt.NDArray[np.float32]:
        """`(n_matrices * n_columns,)`; an expert that never ran counts as even."""
        counts = self.counts[:, None]
        means = np.where(counts > 0, self.squares / np.maximum(counts, 1), 1.0)
        return np.ascontiguousarray(means, np.float32).reshape(-1)


@dataclass(frozen=True)
class Imatrix:
    """A whole matrix and what it was made from."""

    entries: Mapping[str, Sums]
    """By the name of the weight tensor."""
    datasets: tuple[str, ...]
    n_chunks: int
    chunk_tokens: int


def write(matrix: Imatrix, path: Path) -> None:
    """As llama.cpp's tools read it."""
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array(_DATA_KEY, list(matrix.datasets))
    writer.add_uint32(_COUNT_KEY, matrix.n_chunks)
    writer.add_uint32(_SIZE_KEY, matrix.chunk_tokens)
    for name, sums in sorted(matrix.entries.items()):
        writer.add_tensor(name + _SUMS, sums.squares.astype(np.float32))
        writer.add_tensor(name + _COUNTS, sums.counts.reshape(-1, 1).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> Imatrix:
    """Raises QuantizeError for a file that is no importance matrix or holds numbers that are none."""
    try:
        info = header.read(path)
    except HeaderError as error:
        raise QuantizeError(f"{path.name} is no importance matrix: {error}") from None
    if info.metadata.get("general.type") != "imatrix":
        raise QuantizeError(f"{path.name} is a GGUF file, but no importance matrix (general.type)")
    if any(tensor.type_name != "F32" for tensor in info.tensors):
        raise QuantizeError(f"{path.name} holds sums that are not F32")
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}
    entries = {}
    for name, squares in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = tensors.get(weight + _COUNTS)
        squares = squares.reshape(-1, squares.shape[-1])
        if counts is None or counts.size != len(squares):
            raise QuantizeError(f"{path.name} has no counts for {weight}")
        if not np.isfinite(squares).all() or (squares < 0).any() or not np.isfinite(counts).all():
            raise QuantizeError(f"{path.name} holds sums for {weight} that are no sums of squares")
        entries[weight] = Sums(squares, counts.reshape(-1))
    if not entries:
        raise QuantizeError(f"{path.name} holds no sums")
    chunks, size = info.metadata.get(_COUNT_KEY, 0), info.metadata.get(_SIZE_KEY, 0)
    return Imatrix(
        entries, (), int(chunks) if isinstance(chunks, int) else 0, int(size) if isinstance(size, int) else 0
    )


def check_fits(matrix: Imatrix, model: HeaderInfo, name: str) -> None:
    """Raise QuantizeError unless the matrix was made for a model of these shapes."""
    columns = {tensor.name: tensor.shape[0] for tensor in model.tensors}
    matching = [weight for weight in matrix.entries if weight in columns]
    for weight in matching:
        found = matrix.entries[weight].squares.shape[1]
        if found != columns[weight]:
            raise QuantizeError(
                f"{name} was made for another model: {weight} has {columns[weight]} columns, the matrix {found}"
            )
    if not matching:
        raise QuantizeError(f"{name} was made for another model: it names no matrix of this one")
