"""Adapters in a loaded transformers model: each row of a flat batch gets what its own sequence's adapter adds.

Small adapters are stacked: their pairs are two matrices for all of them, and a mask keeps each row to its own columns.
So a step costs two small products per layer however many adapters it serves, and rows of the base stay as they are.
Source: LoRA, https://arxiv.org/abs/2106.09685, equation 3; batching over adapters as in Punica,
https://arxiv.org/abs/2310.18547, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from backends.files.adapters import AdapterError
from backends.files.lora_values import read_floats
from backends.pytorch.linear import PackedPair, can_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from backends.files.lora_folder import LoraFolder, LoraPair

_STACKED_RANK: Final = 64
"""Columns of a stack: more would cost prompts of few adapters more than one product each."""
_FEW_ROWS: Final = 0.5
"""Below this share of a pass the rows of a stack are taken out of it, which costs three more operations."""


@dataclass
class _Part:
    """One layer's share of a stack."""

    combine: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    """`(n, in)`, a mask `(n, columns)` and the layer's own `(n, out)` to their sum; scales are within."""
    owners: torch.Tensor
    """`(columns,) int64`: the adapter that each column belongs to."""
    key: tuple[int, ...]
    """The same as Python's numbers: layers that are cut alike share their masks."""


@dataclass
class _Pass:
    """Which rows of one pass have an adapter; made anew for each."""

    adapters: torch.Tensor
    """`(n,) int64`; -1: the base alone."""
    rows: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """By stack, the rows that one of its adapters has; None: so many that all are computed, others with a mask of
    zeros. A stack without rows is not there."""
    masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)


class LoraAdapters:
    """See the module's text. Owns the hooks on the model's layers; raises AdapterError for one that cannot be read."""

    def __init__(self, model: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._layers = dict(model.named_modules())
        head = model.get_output_embeddings()
        self._device, self._dtype = device, dtype
        self._folders: list[list[tuple[LoraPair, torch.Tensor, torch.Tensor]]] = []
        self._stack_of: list[int] = []
        self._now: _Pass | None = None
        self._of_outputs: _Pass | None = None
        self._head_name = next((name for name, layer in self._layers.items() if layer is head), None)
        self.n_bytes = 0
        """Of all matrices."""

    def add(self, folder: LoraFolder) -> int:
        """Read an adapter's weights; its number. Raises AdapterError, and nothing of it stays."""
        pairs = []
        for pair in folder.pairs:
            a, b = (torch.from_numpy(read_floats(folder.path, side)).to(self._device) for side in (pair.a, pair.b))
            self._check_layer(pair)
            pairs.append((pair, a.to(self._dtype), (b * pair.scale).to(self._dtype)))
        self._folders.append(pairs)
        self.n_bytes += sum(a.nbytes + b.nbytes for _, a, b in pairs)
        return len(self._folders) - 1

    def attach(self) -> None:
        """Put the hooks on; nothing is added behind it."""
        stacks = _stacks([max(pair.rank for pair, _, _ in pairs) for pairs in self._folders])
        self._stack_of = [0] * len(self._folders)
        for number, members in enumerate(stacks):
            for member in members:
                self._stack_of[member] = number
        parts: dict[str, list[tuple[int, _Part]]] = {}
        for number, members in enumerate(stacks):
            for layer, made in self._parts(members).items():
                parts.setdefault(layer, []).append((number, made))
        for layer, found in parts.items():
            self._layers[layer].register_forward_hook(self._hook(found, of_outputs=layer == self._head_name))
        self._folders.clear()  # what is computed with has an order of its own

    def choose(self, adapters: NDArray[np.int64], outputs: NDArray[np.intp]) -> None:
        """Which adapter each row of the next pass has, -1 for none; `outputs` are the rows that reach the head."""
        self._now = self._pass(adapters)
        self._of_outputs = self._pass(adapters[outputs])

    def _pass(self, adapters: NDArray[np.int64]) -> _Pass | None:
        if not self._stack_of or (adapters < 0).all():
            return None
        made = _Pass(torch.from_numpy(adapters).to(self._device))
        stacks = np.where(adapters < 0, -1, np.take(self._stack_of, np.maximum(adapters, 0)))
        for stack in np.unique(stacks[stacks >= 0]).tolist():
            found = np.flatnonzero(stacks == stack)
            few = found.size < _FEW_ROWS * adapters.size
            made.rows[stack] = torch.from_numpy(found).to(self._device) if few else None
        return made

    def _hook(self, parts: Sequence[tuple[int, _Part]], *, of_outputs: bool) -> Callable[..., torch.Tensor | None]:
        def add(_layer: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            now = self._of_outputs if of_outputs else self._now
            if now is None:
                return None
            x, flat = inputs[0].reshape(-1, inputs[0].shape[-1]), out.reshape(-1, out.shape[-1])
            if x.shape[0] != now.adapters.shape[0]:
                raise RuntimeError(f"a layer with an adapter gets {x.shape[0]} rows of {now.adapters.shape[0]}")
            x, summed = x.to(self._dtype), flat.to(self._dtype)
            for stack, part in parts:
                if stack not in now.rows:
                    continue
                rows, mask = now.rows[stack], self._mask(now, stack, part)
                if rows is None:
                    summed = part.combine(x, mask, summed)
                else:
                    summed.index_copy_(0, rows, part.combine(x[rows], mask, summed[rows]))
            return summed.to(out.dtype).view(out.shape)

        return add

    def _mask(self, now: _Pass, stack: int, part: _Part) -> torch.Tensor:
        """`(rows of the stack, columns)`: 1 where a column is of the row's adapter."""
        key = (stack, *part.key)
        found = now.masks.get(key)
        if found is None:
            rows = now.rows[stack]
            adapters = now.adapters if rows is None else now.adapters[rows]
            found = now.masks[key] = (adapters[:, None] == part.owners[None, :]).to(self._dtype)
        return found

    def _parts(self, members: Sequence[int]) -> Mapping[str, _Part]:
        by_layer: dict[str, list[tuple[int, torch.Tensor, torch.Tensor]]] = {}
        for member in members:
            for pair, a, b in self._folders[member]:
                by_layer.setdefault(pair.layer, []).append((member, a, b))
        return {layer: self._part(found) for layer, found in by_layer.items()}

    def _part(self, found: Iterable[tuple[int, torch.Tensor, torch.Tensor]]) -> _Part:
        numbers, downs, ups = zip(*found, strict=True)
        owners = tuple(number for number, a in zip(numbers, downs, strict=True) for _ in range(a.shape[0]))
        down, up = torch.cat(downs), torch.cat(ups, dim=1).contiguous()
        packs = self._device.type == "cpu" and can_pack(self._dtype)
        pair = PackedPair(down, up) if packs else _plain_pair(down, up)
        return _Part(pair, torch.tensor(owners, device=self._device), owners)

    def _check_layer(self, pair: LoraPair) -> None:
        """What is loaded may be otherwise than what is stored. Raises AdapterError."""
        layer = self._layers.get(pair.layer)
        shape = None if layer is None else _shape(layer)
        if shape != (pair.b.shape[0], pair.a.shape[1]):
            told = "is no linear layer" if shape is None else f"has {shape[1]} inputs and {shape[0]} outputs"
            raise AdapterError(
                f"it changes {pair.layer[:120]}, which {told} in the loaded model. hint: is it an adapter of this very "
                "base?"
            )


def _shape(layer: Any) -> tuple[int, int] | None:
    """`(out, in)` of a linear layer; of transformers' Conv1D they are called otherwise."""
    if hasattr(layer, "out_features") and hasattr(layer, "in_features"):
        return int(layer.out_features), int(layer.in_features)
    return (int(layer.nf), int(layer.nx)) if hasattr(layer, "nf") and hasattr(layer, "nx") else None


def _plain_pair(
    down: torch.Tensor, up: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The same as `PackedPair` computes, where rows need not be independent of each other."""
    linear = torch.nn.functional.linear
    return lambda x, mask, out: out + linear(linear(x, down) * mask, up)


def _stacks(ranks: Sequence[int]) -> list[list[int]]:
    """Adapters that are computed together, in order, by their ranks."""
    stacks: list[list[int]] = []
    room = 0
    for number, rank in enumerate(ranks):
        if not stacks or rank > room:
            stacks.append([])
            room = _STACKED_RANK
        stacks[-1].append(number)
        room -= rank
    return stacks
