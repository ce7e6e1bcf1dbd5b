"""What an output will take when it is served, by the ledger's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from backends.backend import Header, HeaderError
from backends.bnb import header as folders
from backends.plan import ALL_LAYERS, Device, LoadPlan
from backends.registry import estimate


def predicted_bytes(header: Header, *, context: int, device: Device) -> int | None:
    """Bytes where it computes, with one request of `context` tokens, F16 cache; None beyond its context."""
    if header.n_ctx_train and context > header.n_ctx_train:
        return None
    plan = LoadPlan(context=context, parallel=1, kv_type="f16", gpu_layers=ALL_LAYERS, device=device)
    return estimate(header, plan).on(device).total_bytes


def of_folder(folder: Path, type_name: str = "none") -> Header | None:
    """A model folder, as it is or as it will be once quantised; None where the arithmetic does not know its kind."""
    quantization = {"bnb-8bit": "bnb-8bit", "none": "none"}.get(type_name, "bnb-4bit")
    try:
        return folders.read(folder, quantization)
    except HeaderError:
        return None
