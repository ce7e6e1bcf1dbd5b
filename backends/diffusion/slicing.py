"""Feed-forward layers of a U-Net's transformers in slices of an image's cells: less memory, and the same numbers.

They are wider than all else in a step: attention keeps no scores, so slices of that would save nothing. See
`diffusers.models.attention.FeedForward`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from backends.diffusion.kind import SLICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def in_slices(network: Any) -> None:
    """Compute every such layer so, from now on."""
    for layer in network.modules():
        if type(layer).__name__ == "FeedForward":
            layer.forward = _sliced(layer.forward)


def _sliced(whole: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def compute(cells: Tensor) -> Tensor:
        """`(n, cells, width)` to the same."""
        found = torch.empty_like(cells)
        size = -(-cells.shape[1] // SLICES)
        for first in range(0, cells.shape[1], size):
            found[:, first : first + size] = whole(cells[:, first : first + size])
        return found

    return compute
