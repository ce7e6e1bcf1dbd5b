"""LoRA adapters in loaded networks: what a pass adds to the layers' outputs, each image in the strength it asks for.

All images of a pass have one adapter. Layers are left as they are, so an image without an adapter is the same to the
last bit whether there are adapters or not. Source: LoRA, https://arxiv.org/abs/2106.09685, equation 3.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from backends.diffusion.layer_names import plain
from backends.files.adapters import AdapterError
from backends.files.lora_values import read_floats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from backends.files.lora_folder import LoraPair


@dataclass(frozen=True)
class _Pair:
    """Of one layer, in the type that is computed in; the adapter's scale is in `up`."""

    down: Tensor
    """`(rank, in)`, of a convolution `(rank, in, height, width)`."""
    up: Tensor
    """`(out, rank)`."""


@dataclass(frozen=True)
class _Pass:
    """What is computed now."""

    adapter: str
    scales: Tensor
    """`(n,)`: of each image of the pass."""


class ImageAdapters:
    """See the module's text. Owns the hooks on the networks' layers."""

    def __init__(self, networks: Mapping[str, Any], device: str) -> None:
        """`networks` by the names of their folders; `device` is where they compute, wherever they wait."""
        self._device = device
        self._layers = {
            plain(f"{part}.{name}"): layer
            for part, network in networks.items()
            for name, layer in network.named_modules()
        }
        self._dtypes = {part: network.dtype for part, network in networks.items()}
        self._pairs: dict[str, dict[str, _Pair]] = {}
        """By layer, then by adapter."""
        self._now: _Pass | None = None

    @property
    def n_bytes(self) -> int:
        """Of all matrices."""
        return sum(one.down.nbytes + one.up.nbytes for named in self._pairs.values() for one in named.values())

    def add(self, name: str, file: Path, pairs: Sequence[LoraPair]) -> None:
        """Read an adapter's weights. Raises AdapterError, and nothing of it stays."""
        made = {pair.layer: self._read(file, pair) for pair in pairs}
        for layer, pair in made.items():
            if layer not in self._pairs:
                self._pairs[layer] = {}
                self._layers[layer].register_forward_hook(self._hook(self._pairs[layer]))
            self._pairs[layer][name] = pair

    def drop(self, name: str) -> None:
        """Let go of an adapter."""
        for named in self._pairs.values():
            named.pop(name, None)

    @contextmanager
    def using(self, name: str, scales: Sequence[float]) -> Iterator[None]:
        """Compute with an adapter, each row of the pass in its strength; with none where `name` is empty."""
        self._now = _Pass(name, torch.tensor(scales)) if name else None
        try:
            yield
        finally:
            self._now = None

    def _read(self, file: Path, pair: LoraPair) -> _Pair:
        layer = self._layers.get(pair.layer)
        is_linear = hasattr(layer, "in_features")  # packed or not
        if not (is_linear or isinstance(layer, torch.nn.Conv2d)) or getattr(layer, "groups", 1) != 1:
            raise AdapterError(f"it changes {pair.layer[:120]}, which is neither linear nor a convolution when loaded")
        place = {"device": self._device, "dtype": self._dtypes[pair.layer.partition(".")[0]]}
        down, up = (torch.from_numpy(read_floats(file.parent, side)) for side in (pair.a, pair.b))
        return _Pair(down.to(**place), (up.flatten(1) * pair.scale).to(**place).contiguous())

    def _hook(self, pairs: Mapping[str, _Pair]) -> Callable[..., None]:
        def add(layer: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            pair = None if self._now is None else pairs.get(self._now.adapter)
            if pair is None or self._now is None:
                return
            x = inputs[0].to(pair.down.dtype)
            if pair.down.dim() == 2:
                inner = _scaled(functional.linear(x, pair.down), self._now.scales)
                out.view(-1, out.shape[-1]).addmm_(inner.flatten(0, -2).to(out.dtype), pair.up.t().to(out.dtype))
                return
            found = functional.conv2d(x, pair.down, None, layer.stride, layer.padding, layer.dilation)
            inner = _scaled(found, self._now.scales).flatten(2)
            out.view(*out.shape[:2], -1).baddbmm_(pair.up.expand(out.shape[0], -1, -1), inner)

        return add


def _scaled(inner: Tensor, scales: Tensor) -> Tensor:
    """Each image in its strength; one strength stands for all rows."""
    return inner * scales.to(inner).view(-1, *[1] * (inner.dim() - 1))
