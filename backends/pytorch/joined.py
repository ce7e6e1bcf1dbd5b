"""Linear layers of one input as one product on the CPU, in which small pairs of matrices add to chosen rows.

`[x, mask * (x A^T)] [W, B]^T`: the pairs of LoRA, https://arxiv.org/abs/2106.09685, equation 3, beside the layers' own
matrices. A row whose mask is zero has zeros behind its own numbers, and comes out bit for bit as without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from backends.pytorch.linear import PackedFactor, PackedLinear

if TYPE_CHECKING:
    from collections.abc import Sequence


class JoinedLayers(torch.nn.Module):
    """Takes the place of packed layers, whose matrices it holds."""

    def __init__(self, layers: Sequence[PackedLinear], down: torch.Tensor, up: torch.Tensor) -> None:
        """`down` is `(columns, in)`, `up` `(sum of outs, columns)` with zeros where a column is not of a layer."""
        super().__init__()
        self.n_columns, self.in_features = down.shape
        self.sizes = [layer.out_features for layer in layers]
        self._down = PackedFactor(down)
        self._whole = PackedLinear(torch.cat([_beside(layers), up], dim=1), _biases(layers))
        self._own_bytes = sum(layer.n_bytes for layer in layers)

    @property
    def n_bytes(self) -> int:
        """As they lie in memory, of all matrices but the layers' own."""
        return self._down.n_bytes + self._whole.n_bytes - self._own_bytes

    @property
    def n_bytes_of_up(self) -> int:
        """Of the numbers that are one with the layers' own."""
        return self.n_columns * self._whole.out_features * self._whole.dtype.itemsize

    def outputs(self, x: torch.Tensor, mask: torch.Tensor | None) -> Sequence[torch.Tensor]:
        """`(..., in)` to `(..., out)` of each layer; `mask` is `(n, columns)`, and None adds nothing."""
        rows = x.reshape(-1, self.in_features)
        inner = rows.new_zeros(rows.shape[0], self.n_columns) if mask is None else self._down.times(rows, mask)
        out = self._whole(torch.cat([rows, inner], dim=1)).view(*x.shape[:-1], -1)
        return torch.split(out, self.sizes, dim=-1)

    def apart(self) -> list[PackedLinear]:
        """The layers as they were."""
        weight, bias = self._whole.unpacked()
        weights = torch.split(weight[:, : self.in_features], self.sizes)
        biases = [None] * len(weights) if bias is None else torch.split(bias, self.sizes)
        return [PackedLinear(one, of_one) for one, of_one in zip(weights, biases, strict=True)]


def _beside(layers: Sequence[PackedLinear]) -> torch.Tensor:
    return torch.cat([layer.unpacked()[0] for layer in layers])


def _biases(layers: Sequence[PackedLinear]) -> torch.Tensor | None:
    """Of all layers, or of none: a sum with a zero has other bits than none where it is a negative zero."""
    found = [layer.unpacked()[1] for layer in layers]
    given = [bias for bias in found if bias is not None]
    if given and len(given) < len(found):
        raise ValueError(f"{len(given)} of {len(found)} layers have biases, and joined ones have all or none")
    return torch.cat(given) if given else None
