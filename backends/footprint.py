"""The bytes a model takes in a given configuration, by component, predicted from its files before anything is loaded.

The one door of the server to the backends' arithmetic. What fits where is decided in `server.placement`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.gguf import arithmetic
from backends.gguf.header import HeaderError, HeaderInfo
from backends.gguf.header import read as read_gguf
from backends.plan import ALL_LAYERS, CELL_BLOCK, RUNTIME_BYTES, Device, Footprint, Plan

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "ALL_LAYERS",
    "CELL_BLOCK",
    "RUNTIME_BYTES",
    "Device",
    "Footprint",
    "HeaderError",
    "HeaderInfo",
    "ModelHeader",
    "Plan",
    "inspect",
    "layer_share",
    "predict",
]

ModelHeader = HeaderInfo


def inspect(backend: str, path: Path) -> HeaderInfo:
    """Read what a model's files say about it. Raises HeaderError; blocks on the disk."""
    if backend != "gguf":
        raise HeaderError(f"this version serves GGUF files; it has no '{backend}' backend for model folders")
    header = read_gguf(path)
    if header.n_layers > len(header.tensors):
        raise HeaderError(f"the file announces {header.n_layers} layers, but holds {len(header.tensors)} tensors")
    return header


def predict(header: HeaderInfo, plan: Plan) -> Footprint:
    """The price of a plan in bytes of the plan's device."""
    return arithmetic.predict(header, plan)


def layer_share(header: HeaderInfo, plan: Plan) -> float:
    """The part of a model's layers that lies on the budgeted device."""
    return arithmetic.layer_share(header, plan)
