"""What a loaded model's tensors take, and the libraries that hold them."""

from __future__ import annotations

import gc
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from backends.machine.kernel import anonymous_bytes, give_back_freed

if TYPE_CHECKING:
    from collections.abc import Iterator


def weight_bytes(model: Any) -> int:
    """All tensors of a model, those shared by several layers once."""
    return sum(_tensors(model).values())


def mapped_bytes(model: Any) -> int:
    """Of its tensors, those that are still in the mapped file: they are not among the process's anonymous memory."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".safetensors")]
    spans = [tuple(int(end, 16) for end in line[0].split("-")) for line in maps]
    return sum(n for place, n in _tensors(model).items() if any(first <= place < end for first, end in spans))


def runtime_bytes(model: Any, *, beside: int) -> int:
    """What this process holds in host memory besides the model's tensors and `beside` bytes of buffers."""
    gc.collect()
    give_back_freed()  # quantising leaves as much behind as the weights took before
    return max(0, anonymous_bytes() + mapped_bytes(model) - weight_bytes(model) - beside)


def host_parts_beside_card() -> dict[str, int]:
    """What this process holds of host memory while its model lies on a card."""
    gc.collect()
    give_back_freed()
    return {"runtime": anonymous_bytes()}


def _tensors(model: Any) -> dict[int, int]:
    """The bytes of each tensor by its place in memory."""
    seen = {}
    for module in model.modules():
        for value in [*vars(module).values(), *module._parameters.values(), *module._buffers.values()]:  # noqa: SLF001
            if isinstance(value, torch.Tensor):
                seen[_place(value)] = value.nbytes
    return seen | {_place(tensor): tensor.nbytes for tensor in beside_weights(model)}


def beside_weights(model: Any) -> Iterator[torch.Tensor]:
    """What bitsandbytes keeps beside a model's packed weights, which is neither parameter nor buffer."""
    for module in model.modules():
        for value in [*vars(module).values(), *module._parameters.values()]:  # noqa: SLF001
            state = getattr(value, "quant_state", None)
            nested = getattr(state, "state2", None)
            of_4_bits = [getattr(state, name, None) for name in ("absmax", "code", "offset")]
            of_4_bits += [getattr(nested, name, None) for name in ("absmax", "code")]
            for tensor in (*of_4_bits, getattr(value, "CB", None), getattr(value, "SCB", None)):
                if isinstance(tensor, torch.Tensor):
                    yield tensor


def _place(tensor: torch.Tensor) -> int:
    return id(tensor) if tensor.is_mkldnn else tensor.data_ptr()


def version() -> str:
    """Names and versions of the libraries in use."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "bitsandbytes", "torch"))
