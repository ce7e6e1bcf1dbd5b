"""What an output will take when it is served, by the ledger's own arithmetic."""

from __future__ import annotations

from pathlib import Path

from backends.footprint import ALL_LAYERS, Device, HeaderError, ModelHeader, Plan, inspect, predict


def predicted_bytes(header: ModelHeader, *, context: int, device: Device) -> int | None:
    """Bytes with one request of `context` tokens at once, F16 cache; None where the model has not so much context."""
    if header.n_ctx_train and context > header.n_ctx_train:
        return None
    plan = Plan(context=context, parallel=1, kv_type="f16", gpu_layers=ALL_LAYERS, device=device)
    return predict(header, plan).total_bytes


def of_folder(folder: Path, type_name: str = "none") -> ModelHeader | None:
    """A model folder, as it is or as it will be once quantised; None where the arithmetic does not know its kind."""
    quantization = {"bnb-8bit": "bnb-8bit", "none": "none"}.get(type_name, "bnb-4bit")
    try:
        return inspect("bnb", folder, quantization=quantization)
    except HeaderError:
        return None
