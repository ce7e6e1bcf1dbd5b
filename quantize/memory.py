"""What an output will take when it is served, by the ledger's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from backends.backend import Header, HeaderError
from backends.bnb import header as folders
from backends.messages import Device, EncoderPlan, GeneratorPlan
from backends.registry import estimate


def predicted_bytes(header: Header, *, context: int, device: Device) -> int | None:
    """Bytes where it computes, with one request of `context` tokens, F16 cache; None beyond its context."""
    if header.n_ctx_train and context > header.n_ctx_train:
        return None
    text = header.gives == "text"
    plan = GeneratorPlan(context, 1, device=device) if text else EncoderPlan(context, device=device)
    return estimate(header, plan).on(device).total_bytes


def of_folder(folder: Path, type_name: str = "none") -> Header | None:
    """A model folder, as it is or as it will be once quantised; None where the arithmetic does not know its kind."""
    quantization = {"bnb-8bit": "bnb-8bit", "none": "none"}.get(type_name, "bnb-4bit")
    try:
        return folders.read(folder, quantization)
    except HeaderError:
        return None
