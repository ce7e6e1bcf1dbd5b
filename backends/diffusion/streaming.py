"""A network filled out of a model's one file, tensor by tensor: one is read, changed and placed before the next.

So host memory holds what stays there and one tensor more, whatever the file's types and the network's place are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from backends.diffusion.file_tensors import FileTensor, as_linear, told_shape
from backends.diffusion.layer_names import plain
from backends.diffusion.library import allow_bitsandbytes
from backends.diffusion.packing import packed, parents, takes
from backends.engine import LoadError
from backends.files import model_files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from backends.diffusion.kind import Quantization
    from backends.files.model_files import ModelFile
    from backends.files.tensors import StoredTensor
    from backends.messages import Device

_DTYPES: Final = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


class Filler:
    """Fills one network, which has shapes and no numbers, in `place`, to compute on `device` in `dtype`."""

    def __init__(self, dtype: torch.dtype, quantization: Quantization, place: Device, device: Device) -> None:
        self._dtype, self._quantization = dtype, quantization
        self._place, self._device = place, device
        if quantization != "none":
            allow_bitsandbytes()

    def fill(self, network: Any, part: str, path: Path, stored: Iterable[StoredTensor]) -> None:
        """With what `stored` has of it, by the part's name. Raises LoadError or FileError."""
        found = {plain(tensor.name): tensor for tensor in stored if isinstance(tensor, FileTensor)}
        with model_files.opened(path) as file:
            self._fill(network, part, file, found, self._place)
            for prefix, parent in parents(network):
                for name in [name for name, _ in parent.named_children()]:
                    layer = parent.get_submodule(name)
                    is_packed = self._quantization != "none" and takes(name, layer)
                    inner = f"{prefix}.{name}".lstrip(".")
                    self._fill(layer, f"{part}.{inner}", file, found, "cpu" if is_packed else self._place)
                    if is_packed:
                        setattr(parent, name, packed(layer, self._quantization, self._place, self._device))

    def _fill(
        self, layer: torch.nn.Module, name: str, file: ModelFile, found: Mapping[str, FileTensor], place: Device
    ) -> None:
        for key, slot in _slots(layer):
            tensor = found.get(plain(f"{name}.{key}"))
            if tensor is None:
                continue
            if as_linear(tuple(slot.shape)) != as_linear(tensor.shape):
                theirs, ours = told_shape(tensor.shape), told_shape(tuple(slot.shape))
                raise LoadError(
                    f"{tensor.source[:120]} is {theirs} in the file, and {ours} in the network of its folder. "
                    "hint: image_config = the folder of the file's own model"
                )
            numbers = numbers_of(file, tensor, self._dtype).reshape(slot.shape).to(place)
            if key in layer._parameters:  # noqa: SLF001 - what a layer has of its own
                layer._parameters[key] = torch.nn.Parameter(numbers, requires_grad=False)  # noqa: SLF001
            else:
                layer._buffers[key] = numbers  # noqa: SLF001


def _slots(layer: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A layer's own parameters and buffers."""
    yield from layer.named_parameters(recurse=False)
    yield from layer.named_buffers(recurse=False)


def numbers_of(file: ModelFile, tensor: FileTensor, dtype: torch.dtype) -> Tensor:
    """In the network's shape and `dtype`. Raises LoadError or FileError.

    8-bit floats are exact in 16 bits. Those with a scale are multiplied in float32 and rounded once.
    """
    if tensor.change == "identity":
        return torch.eye(tensor.shape[0], dtype=dtype)
    found = _raw(file, tensor)
    if tensor.scale is not None:
        scale = _raw(file, tensor.scale).float().reshape(())
        if not bool(torch.isfinite(scale)) or float(scale) <= 0:
            raise LoadError(f"{tensor.scale.name[:120]} is {float(scale):g}, which scales nothing. hint: another file")
        found = found.float().mul_(scale)
    if tensor.change == "transposed":
        found = found.reshape(tensor.shape[::-1]).T
    found = found.to(dtype).reshape(tensor.shape)
    if tensor.change == "halves":
        found = torch.cat([*reversed(found.chunk(2))])
    return found.contiguous()


def _raw(file: ModelFile, stored: StoredTensor) -> Tensor:
    """`(n,)`, as it is stored."""
    raw = torch.empty(stored.n_bytes, dtype=torch.uint8)
    file.fill(raw.numpy().data, stored.start)
    return raw.view(_DTYPES[stored.dtype])
