"""Reads what a Hugging Face model folder says about itself: config.json and the headers of its safetensors files.

Every number is checked against the file's size. No weights are read and no code of the folder is run.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from backends.backend import HeaderError
from backends.bnb.layout import GENERATES, Gives, Layout, LayoutError, input_limit, read_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
MAX_CONFIG_BYTES: Final = 4 * 2**20
MAX_INDEX_BYTES: Final = 64 * 2**20
MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own limit."""
MAX_FILES: Final = 1000
MAX_TENSORS: Final = 1_000_000
_PICKLES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
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

    @property
    def n_elements(self) -> int:
        """Of its shape."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class FolderInfo:
    """What a folder says, as far as the server needs it."""

    backend: ClassVar[str] = "bnb"

    architecture: str
    config: Mapping[str, Any] = field(repr=False)
    """The text model's part of config.json."""
    quantization: Mapping[str, Any]
    """How the weights are stored or shall be loaded; empty for 16 bits."""
    stored_quantised: bool
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    file_bytes: int
    longest_token_bytes: int = 0
    layout: Layout = GENERATES
    """What the model is for, and how its vectors are made."""

    @property
    def gives(self) -> Gives:
        """What the model answers with."""
        return self.layout.gives

    def number(self, key: str, default: int = 0) -> int:
        """A count of the configuration, never below 0."""
        value = self.config.get(key)
        return max(0, value) if isinstance(value, int) and not isinstance(value, bool) else default

    @property
    def tokens_cover_text(self) -> bool:
        """Not known before the tokenizer is loaded."""
        return False

    @property
    def n_ctx_train(self) -> int:
        """Tokens of context the model was trained for."""
        trained = self.number("max_position_embeddings")
        return input_limit(trained, self.config) if self.gives != "text" else trained

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return self.number("num_hidden_layers")

    @property
    def n_vocab(self) -> int:
        """Tokens of the vocabulary."""
        return self.number("vocab_size")


def read(folder: Path, quantization: str = "none") -> FolderInfo:
    """Read and check a folder; `quantization` says how 16-bit weights shall be loaded. Raises HeaderError; blocks."""
    config = _json(folder / "config.json", MAX_CONFIG_BYTES)
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    _check(config, text)
    stored = config.get("quantization_config")
    tensors: list[StoredTensor] = []
    file_bytes = 0
    for path in _files(folder):
        found, n_bytes = _tensors(path)
        tensors += found
        file_bytes += n_bytes
    if len(tensors) > MAX_TENSORS:
        raise HeaderError(f"the folder announces {len(tensors)} tensors, more than there can be")
    return FolderInfo(
        architecture=config.get("model_type") or "",
        config={"dtype": config.get("dtype", config.get("torch_dtype")), **text},
        quantization=stored if isinstance(stored, dict) else _asked(quantization),
        stored_quantised=isinstance(stored, dict),
        tensors=tuple(tensors),
        file_bytes=file_bytes,
        layout=_layout(folder, config),
    )


def _check(config: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    if any(not isinstance(part.get("model_type"), str | None) for part in (config, text)):
        raise HeaderError("config.json says model_type, and not as text")
    n_layers = text.get("num_hidden_layers")
    if isinstance(n_layers, int) and n_layers < 1:
        raise HeaderError(f"config.json says num_hidden_layers = {n_layers}, and a model has layers")


def _layout(folder: Path, config: dict[str, Any]) -> Layout:
    try:
        return read_layout(folder, config)
    except LayoutError as error:
        raise HeaderError(str(error)) from None


def _asked(quantization: str) -> dict[str, Any]:
    return {
        "bnb-4bit": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
        "bnb-8bit": {"load_in_8bit": True},
    }.get(quantization, {})


def _files(folder: Path) -> list[Path]:
    if not (folder / INDEX).is_file():
        _check_not_pickled(folder)
        if not (folder / SINGLE).exists():
            raise HeaderError(
                f"the folder has no weights: neither {SINGLE} nor {INDEX}. hint: were they downloaded completely?"
            )
        return [folder / SINGLE]
    placed = _json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
    names = sorted(set(placed.values())) if isinstance(placed, dict) and _all_text(placed.values()) else []
    if not names or len(names) > MAX_FILES:
        raise HeaderError(f"{INDEX} names no files, or more than {MAX_FILES}")
    if any(Path(name).name != name for name in names):
        raise HeaderError(f"{INDEX} names files outside of the folder")
    if missing := [name for name in names if not (folder / name).exists()]:
        raise HeaderError(
            f"{INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(names)} files are missing). "
            "hint: was the folder downloaded completely?"
        )
    return [folder / name for name in names]


def _check_not_pickled(folder: Path) -> None:
    """Raises HeaderError where there are weights, but only such as can run code when they are read."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES) if folder.is_dir() else []
    if pickles and not (folder / SINGLE).exists():
        raise HeaderError(
            f"the weights are pickled ({', '.join(pickles[:3])}), and a pickle can run code when it is read. "
            f"hint: take the model's safetensors, or convert them on a machine that trusts them"
        )


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def _tensors(path: Path) -> tuple[list[StoredTensor], int]:
    """The tensors of one file, and its size."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise HeaderError(f"{path.name} announces a header of {length} bytes, more than it can hold")
        table = _parsed(file.read(length), path.name)
    data_bytes = size - 8 - length
    return [_tensor(path.name, name, e, data_bytes) for name, e in table.items() if name != "__metadata__"], size


def _tensor(file: str, name: str, entry: Any, data_bytes: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        bits = _BITS[dtype]
        counts = (*shape, begin, end)
        if not all(isinstance(n, int) and n >= 0 for n in counts) or len(shape) > 16:
            raise ValueError
        wanted = math.prod(shape) * bits
    except (KeyError, TypeError, ValueError):
        raise HeaderError(f"{file} describes tensor {name[:80]!r} in a way that is not understood") from None
    if end > data_bytes or wanted != (end - begin) * 8:
        raise HeaderError(f"tensor {name[:80]!r} does not fit into {file}: it is cut or wrong")
    return StoredTensor(name, tuple(shape), dtype, end - begin)


def _json(path: Path, limit: int) -> dict[str, Any]:
    with _opened(path) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise HeaderError(f"{path.name} has more than {limit} bytes")
        return _parsed(file.read(limit), path.name)


def _opened(path: Path) -> Any:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO must not block the open
    except OSError as error:
        raise HeaderError(f"{path.name} cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise HeaderError(f"{path.name} is not a regular file")
    return os.fdopen(fd, "rb")


def _parsed(raw: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise HeaderError(f"{name} is not JSON") from None
    if not isinstance(document, dict):
        raise HeaderError(f"{name} is not a JSON object")
    return document
