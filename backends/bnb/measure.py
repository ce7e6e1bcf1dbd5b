"""What a loaded model's tensors take, and the libraries that hold them."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch


def weight_bytes(model: Any) -> int:
    """All tensors of a model, those shared by several layers once."""
    seen = {}
    for module in model.modules():
        for value in [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]:  # noqa: SLF001
            state = getattr(value, "quant_state", None)
            for tensor in (
                value,
                getattr(state, "absmax", None),
                getattr(value, "CB", None),
                getattr(value, "SCB", None),
            ):
                if isinstance(tensor, torch.Tensor):
                    seen[_place(tensor)] = tensor.nbytes
    return sum(seen.values())


def _place(tensor: torch.Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else tensor.data_ptr()


def version() -> str:
    """Names and versions of the libraries in use."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "bitsandbytes", "torch"))
