"""Linear layers in 8 or 4 bits: those of the network that denoises and of T5, as bitsandbytes computes them.

diffusers' own `BitsAndBytesConfig` wants a card; the layers are the same, packed one by one where they shall lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backends.diffusion.library import allow_bitsandbytes
from backends.diffusion.precision import KEPT

if TYPE_CHECKING:
    from backends.diffusion.kind import Quantization
    from backends.messages import Device


def pack(network: Any, quantization: Quantization, place: Device, device: Device) -> None:
    """Replace the linear layers of a network in host memory by packed ones in `place`, which compute on `device`."""
    allow_bitsandbytes()
    for _, parent in parents(network):
        for name in [name for name, _ in parent.named_children()]:
            layer = parent.get_submodule(name)
            if takes(name, layer):
                setattr(parent, name, packed(layer, quantization, place, device))


def parents(network: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The modules that hold others, by name: a list of all would keep each layer that is replaced."""
    return [(name, module) for name, module in network.named_modules() if next(module.children(), None) is not None]


def takes(name: str, layer: torch.nn.Module) -> bool:
    """Whether a layer, by its name in its parent, is packed where the model is quantised."""
    return type(layer) is torch.nn.Linear and name not in KEPT


def packed(layer: Any, quantization: Quantization, place: Device, device: Device) -> Any:
    """A linear layer in host memory, packed in `place`, to compute on `device`; `allow_bitsandbytes` comes first."""
    made = _in_8_bits if quantization == "bnb-8bit" else _in_4_bits
    return made(layer, place, device).eval()


def _in_8_bits(layer: torch.nn.Linear, place: Device, device: Device) -> Any:
    from backends.pytorch.library import Int8Params, Linear8bitLt
    from backends.pytorch.linear import integer

    made = Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, device="meta")
    made.weight = Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    made.to(place)
    faster = integer(made) if device == "cpu" else None
    if faster is None:
        made.init_8bit_state()  # the first pass would, and tensors that wait for a card must be known before
    return faster or made


def _in_4_bits(layer: torch.nn.Linear, place: Device, _device: Device) -> Any:
    from backends.pytorch.library import Linear4bit, Params4bit

    made = Linear4bit(layer.in_features, layer.out_features, compute_dtype=layer.weight.dtype, device="meta")
    made.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # it computes in bfloat16, and takes more than it was packed into
    return made.to(place)
