"""The bytes a model takes in a given configuration, by component, predicted from its files before anything is loaded.

The one door of the server to the backends' arithmetic. What fits where is decided in `server.memory.placement`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.bnb import arithmetic as folders
from backends.bnb import folder
from backends.bnb.header import FolderInfo
from backends.bnb.header import read as read_folder
from backends.engine import LoadError
from backends.gguf import arithmetic
from backends.gguf.header import HeaderError
from backends.gguf.header import read as read_gguf
from backends.gguf.info import HeaderInfo
from backends.plan import ALL_LAYERS, JOBS_AT_ONCE, RUNTIME_BYTES, Device, Footprint, Plan

if TYPE_CHECKING:
    from pathlib import Path

    from backends.messages import KvType

__all__ = [
    "ALL_LAYERS",
    "JOBS_AT_ONCE",
    "RUNTIME_BYTES",
    "Device",
    "FolderInfo",
    "Footprint",
    "HeaderError",
    "HeaderInfo",
    "ModelHeader",
    "Plan",
    "check",
    "inspect",
    "kv_type_of",
    "layer_share",
    "predict",
]

ModelHeader = HeaderInfo | FolderInfo


def check(backend: str, path: Path, *, trust_remote_code: bool) -> None:
    """Refuse a folder without a tokenizer or one that asks for what it may not have. Raises HeaderError; blocks."""
    if backend == "bnb":
        try:
            folder.check(path, trust_remote_code=trust_remote_code)
        except LoadError as error:
            raise HeaderError(error.message) from None


def inspect(backend: str, path: Path, *, quantization: str = "none") -> ModelHeader:
    """Read what a model's files say about it. Raises HeaderError; blocks on the disk."""
    if backend == "bnb":
        return read_folder(path, quantization)
    header = read_gguf(path)
    if header.n_layers > len(header.tensors):
        raise HeaderError(f"the file announces {header.n_layers} layers, but holds {len(header.tensors)} tensors")
    return header


def predict(header: ModelHeader, plan: Plan) -> Footprint:
    """The price of a plan in bytes of the plan's device."""
    if isinstance(header, FolderInfo):
        return folders.predict(header, plan)
    return arithmetic.predict(header, plan)


def kv_type_of(header: ModelHeader, asked: KvType, device: Device) -> KvType:
    """The type of the KV cache: as asked of a GGUF file, the one that is computed in of a folder."""
    return folders.computed_type(header, device) if isinstance(header, FolderInfo) else asked


def layer_share(header: ModelHeader, plan: Plan) -> float:
    """The part of a model's layers that lies on the budgeted device."""
    return 1.0 if isinstance(header, FolderInfo) else arithmetic.layer_share(header, plan)
