"""The tensors of a model folder, from the headers of its safetensors files: names, shapes, types and places.

Every number is checked against the file's size; no weights are read. Pickled weights are refused by name.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.files import foreign, model_files, tensor_table
from backends.files.model_files import FileError

MAX_HEADER_BYTES: Final = 32 * 2**20
"""A third of the format's own limit: 300 000 tensors."""
MAX_FILES: Final = 1000
MAX_TENSORS: Final = 1_000_000
_METADATA: Final = "__metadata__"
PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_BITS: Final = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as it lies in the folder."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    file: str = ""
    """Name in the folder."""
    start: int = 0
    """Byte in that file."""

    @property
    def n_elements(self) -> int:
        """Of its shape."""
        return math.prod(self.shape)


def read(folder: Path, stem: str = "model") -> tuple[list[StoredTensor], int]:
    """The tensors of all files of a folder, and the bytes of the files. Raises FileError; blocks.

    `stem` is how the names of its files begin.
    """
    tensors: list[StoredTensor] = []
    file_bytes = 0
    for path in _files(folder, f"{stem}.safetensors"):
        found, n_bytes = of_file(path)
        tensors += found
        file_bytes += n_bytes
    if len(tensors) > MAX_TENSORS:
        raise FileError(f"the folder announces {len(tensors)} tensors, more than there can be")
    return tensors, file_bytes


def _files(folder: Path, single: str) -> list[Path]:
    index = f"{single}.index.json"
    if not (folder / index).is_file():
        _check_not_pickled(folder, single)
        if not (folder / single).exists():
            _check_other_weights(folder)
            raise FileError(
                f"the folder has no weights: neither {single} nor {index}. hint: were they downloaded completely?"
            )
        return [folder / single]
    placed = model_files.read_object(folder / index, model_files.INDEX_BYTES).get("weight_map")
    names = sorted(set(placed.values())) if isinstance(placed, dict) and _all_text(placed.values()) else []
    if not names or len(names) > MAX_FILES:
        raise FileError(f"{index} names no files, or more than {MAX_FILES}")
    if any(Path(name).name != name for name in names):
        raise FileError(f"{index} names files outside of the folder")
    if missing := [name for name in names if not model_files.is_there(folder / name)]:
        raise FileError(
            f"{index} names {model_files.shown(missing[0])}, which is not there ({len(missing)} of {len(names)} files "
            "are missing). hint: was the folder downloaded completely?"
        )
    return [folder / name for name in names]


def _check_other_weights(folder: Path) -> None:
    """Raises FileError where there are weights of another kind, or a download that has not ended."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if ggufs := [name for name in names if name.lower().endswith(".gguf")]:
        raise FileError(f"the folder holds GGUF files, each a model. hint: name one: {', '.join(ggufs[:4])}")
    if found := next((name for name in names if foreign.is_unfinished(name)), None):
        raise FileError(f"{found} is a download that is not finished. hint: let it end, or start it again")
    others = [name for name in names if name.lower().endswith((".onnx", ".h5", ".msgpack", ".tflite", ".nemo", ".npz"))]
    if others:
        raise FileError(
            f"the folder's weights are {others[0]}, which onecard does not read. hint: take the model's safetensors"
        )


def _check_not_pickled(folder: Path, single: str) -> None:
    """Raises FileError where there are weights, but only such as can run code when they are read."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES) if folder.is_dir() else []
    if pickles and not (folder / single).exists():
        raise FileError(
            f"the weights are pickled ({', '.join(pickles[:3])}), and a pickle can run code when it is read. "
            f"hint: take the model's safetensors, or convert them on a machine that trusts them"
        )


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def of_file(path: Path) -> tuple[list[StoredTensor], int]:
    """The tensors of one file, and its size. Raises FileError; blocks."""
    table, data_start, size = _header(path)
    found = [_tensor(path.name, name, entry, data_start) for name, entry in table.items() if name != _METADATA]
    spans = (tensor_table.Span(one.start - data_start, one.start - data_start + one.n_bytes, one.name) for one in found)
    tensor_table.check_layout(spans, size - data_start, path.name)
    return found, size


def remarks_of(path: Path) -> dict[str, str]:
    """What the writer of a file has noted in its header, as texts by name. Raises FileError; blocks."""
    noted = _header(path)[0].get(_METADATA)
    return {str(k): v for k, v in noted.items() if isinstance(v, str)} if isinstance(noted, dict) else {}


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The table of one file, where its data begins, and its size. Raises FileError."""
    with model_files.opened(path) as file:
        start, size = file.at(0, foreign.PROBE_BYTES), file.size
        length = int.from_bytes(start[:8], "little")
        if length > min(MAX_HEADER_BYTES, size - 8) or not start.strip(b"\0"):
            raise FileError(
                f"{path.name} announces a header of {length} bytes, more than it can hold: "
                f"{foreign.no_safetensors(start, size)}"
            )
        table = tensor_table.parsed(file.at(8, length), path.name)
    return table, 8 + length, size


def _tensor(file: str, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS[dtype]
        counts = (*shape, begin, end)
        if not all(type(n) is int and n >= 0 for n in counts) or len(shape) > 16:
            raise ValueError
        wanted = math.prod(shape) * bits
    except (KeyError, TypeError, ValueError):
        raise FileError(f"{file} describes tensor {name[:80]!r} in a way that is not understood") from None
    if wanted != (end - begin) * 8:
        raise FileError(f"tensor {name[:80]!r} does not fit into {file}: it is cut or wrong")
    return StoredTensor(name, tuple(shape), dtype, end - begin, file, data_start + begin)
