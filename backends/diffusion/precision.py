"""In which types a folder that draws computes, and which of its matrices are packed. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.packed import int8_bytes, packed_bytes

if TYPE_CHECKING:
    from backends.diffusion.header import DrawHeader
    from backends.diffusion.kind import Quantization
    from backends.files.tensors import StoredTensor
    from backends.messages import Device

KEPT: Final = frozenset({"wo"})
"""Linear layers that are never packed: T5 turns what comes before this one into the type of its weights."""
_OF_T5: Final = (".q.", ".k.", ".v.", ".o.", ".wi.", ".wi_0.", ".wi_1.")


def computed_in(header: DrawHeader, device: Device) -> str:
    """PyTorch's name: a processor computes in float32, a card in 16 bits; transformers need bfloat16's range."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if header.family.flow else "float16"


def packed_parts(header: DrawHeader) -> tuple[str, ...]:
    """Folders of the networks whose linear layers are packed where the model is quantised."""
    return (header.family.denoiser, *(name for name, kind in header.text_encoders.items() if kind == "t5"))


def is_packed(header: DrawHeader, tensor: StoredTensor) -> bool:
    """Whether it is a matrix of a linear layer that is packed where the model is quantised."""
    part, _, name = tensor.name.partition(".")
    if len(tensor.shape) != 2 or not name.endswith(".weight"):
        return False
    if part == header.family.denoiser:
        return True
    return part in packed_parts(header) and any(layer in f".{name}" for layer in _OF_T5)


def loaded_bytes(header: DrawHeader, tensor: StoredTensor, quantization: Quantization, value_bytes: int) -> int:
    """What a tensor takes, each value in `value_bytes` where it is not packed."""
    if quantization == "none" or not is_packed(header, tensor):
        return tensor.n_elements * value_bytes
    if quantization == "bnb-8bit":
        return int8_bytes(tensor.n_elements, tensor.shape[0])
    return packed_bytes(tensor.n_elements, double=True)
