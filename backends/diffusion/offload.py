"""Networks that wait in host memory and come to the card for their own passes, one at a time, packed or not.

Their numbers are copied to the card and dropped there; those in host memory stay where they are, so nothing is copied
back, and the card holds to the byte what `backends.diffusion.arithmetic` counts for each stage. The network that
denoises stays between its steps, until another one comes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from backends.pytorch.measure import beside_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

_PASSES: Final = {"vae": ("encode", "decode")}
"""What computes in a network; of all others `forward` does."""


class Offload:
    """See the module's text. Owns the passes of the networks that wait."""

    def __init__(self, networks: Mapping[str, Any], waiting: Collection[str], denoiser: str, device: str) -> None:
        """`waiting` are the names of those in host memory; `denoiser` is the one that stays between its passes."""
        self._device, self._denoiser, self._here = device, denoiser, ""
        self._held = {name: _tensors(networks[name]) for name in waiting}
        """Of each network its tensors, those that share numbers together, and these numbers in host memory."""
        for name in waiting:
            for method in _PASSES.get(name, ("forward",)):
                setattr(networks[name], method, self._visiting(name, getattr(networks[name], method)))

    def _visiting(self, name: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        def visit(*given: Any, **named: Any) -> Any:
            self._come(name)
            try:
                return compute(*given, **named)
            finally:
                if name != self._denoiser:
                    self._leave()

        return visit

    def _come(self, name: str) -> None:
        if self._here == name:
            return
        self._leave()
        self._here = name  # what has come in part leaves in whole
        with torch.inference_mode(mode=False):
            for tensors, numbers in self._held[name]:
                here = torch.empty_like(numbers, device=self._device).copy_(numbers)
                for tensor in tensors:
                    tensor.data = here

    def _leave(self) -> None:
        with torch.inference_mode(mode=False):
            for tensors, numbers in self._held.get(self._here, ()):
                for tensor in tensors:
                    tensor.data = numbers
        self._here = ""


def _tensors(network: Any) -> list[tuple[list[Tensor], Tensor]]:
    """Numbers once, though several layers share a tensor, or several tensors the numbers."""
    found: dict[tuple[int, int], list[Tensor]] = {}
    for tensor in itertools.chain(network.parameters(), network.buffers(), beside_weights(network)):
        sharing = found.setdefault((tensor.data_ptr(), tensor.nbytes), [])
        if all(tensor is not one for one in sharing):
            sharing.append(tensor)
    return [(tensors, tensors[0].data) for tensors in found.values()]
