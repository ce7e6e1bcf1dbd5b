"""Adapters in a loaded transformers model: each row of a flat batch gets what its own sequence's adapter adds.

Small adapters are stacked: their pairs are two matrices for all of them, and a mask keeps each row to its own columns.
So a step costs two small products however many adapters it serves, for a layer or for some that share their input, and
rows of the base stay as they are.
Source: LoRA, https://arxiv.org/abs/2106.09685, equation 3; batching over adapters as in Punica,
https://arxiv.org/abs/2310.18547, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from backends.bnb.joined import AT_ONCE, sharing
from backends.files.adapters import AdapterError
from backends.files.lora_values import read_floats
from backends.pytorch.linear import PackedFactor, PackedLinear, PlainFactor, can_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from backends.files.lora_folder import LoraFolder, LoraPair

    Factor = PackedFactor | PlainFactor

_STACKED_RANK: Final = 64
"""Columns of a stack: more would cost prompts of few adapters more than one product each."""
_FEW_ROWS: Final = 0.5
"""Below this share of a pass the rows of a stack are taken out of it, which costs three more operations."""


class _Matrices(NamedTuple):
    """Of one adapter and one layer."""

    adapter: int
    a: torch.Tensor
    """`(rank, in)`."""
    b: torch.Tensor
    """`(out, rank)`, with the scale."""


@dataclass
class _Part:
    """The share that layers with one input have of a stack: one layer, or some that are computed at once."""

    stack: int
    down: Factor
    """`(columns, in)`."""
    owners: torch.Tensor
    """`(columns,) int64`: the adapter that each column belongs to."""
    key: tuple[int, ...]
    """The same as Python's numbers: layers that are cut alike share their masks."""
    columns: list[int]
    """Of each layer."""
    ups: list[Factor]
    """`(out, columns)` of each layer, where it is computed by itself; scales are within."""
    sizes: list[int]
    """Outputs of each layer."""
    at_once: Callable[[torch.Tensor], torch.Tensor] | None = None
    """`(n, columns)` to the outputs of all layers beside each other; None: each layer is computed by itself."""

    def begin(self, x: torch.Tensor, mask: torch.Tensor) -> Sequence[torch.Tensor]:
        """What `finish` takes of each layer, from `(n, in)` and `(n, columns)`."""
        inner = self.down.times(x, mask)
        if self.at_once is None:
            return [part.contiguous() for part in torch.split(inner, self.columns, dim=1)]
        return torch.split(self.at_once(inner), self.sizes, dim=1)

    def finish(self, place: int, begun: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The sum of a layer's own `(n, out)` and what the adapters add."""
        return self.ups[place].plus(begun, out) if self.at_once is None else out.add_(begun)


@dataclass
class _Pass:
    """Which rows of one pass have an adapter; made anew for each."""

    adapters: torch.Tensor
    """`(n,) int64`; -1: the base alone."""
    rows: dict[int, torch.Tensor | None] = field(default_factory=dict)
    """By stack, the rows that one of its adapters has; None: so many that all are computed, others with a mask of
    zeros. A stack without rows is not there."""
    masks: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    begun: dict[int, tuple[_Part, torch.Tensor, Sequence[torch.Tensor]]] = field(default_factory=dict)
    """By stack, the last input and what was made of it: the next layer may share it."""


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
            pairs.append((pair, self._sound(pair, a), self._sound(pair, b * pair.scale)))
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
        parts: dict[str, list[tuple[_Part, int]]] = {}
        for number, members in enumerate(stacks):
            for layers, part in self._parts(number, members):
                for place, layer in enumerate(layers):
                    parts.setdefault(layer, []).append((part, place))
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

    def _hook(self, parts: Sequence[tuple[_Part, int]], *, of_outputs: bool) -> Callable[..., torch.Tensor | None]:
        def add(_layer: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            now = self._of_outputs if of_outputs else self._now
            if now is None:
                return None
            x, summed = inputs[0], out.reshape(-1, out.shape[-1])
            if summed.shape[0] != now.adapters.shape[0]:
                raise RuntimeError(f"a layer with an adapter gets {summed.shape[0]} rows of {now.adapters.shape[0]}")
            for part, place in parts:
                if part.stack in now.rows:
                    summed = self._with(now, part, place, x, summed.to(self._dtype))
            return summed.to(out.dtype).view(out.shape)

        return add

    def _with(self, now: _Pass, part: _Part, place: int, x: torch.Tensor, summed: torch.Tensor) -> torch.Tensor:
        """A layer's output with what the adapters of one stack add to it."""
        rows, begun = now.rows[part.stack], now.begun.get(part.stack)
        if begun is None or begun[0] is not part or begun[1] is not x:
            flat = x.reshape(-1, x.shape[-1]).to(self._dtype)
            made = part.begin(flat if rows is None else flat[rows], self._mask(now, part))
            begun = now.begun[part.stack] = (part, x, made)
        if rows is None:
            return part.finish(place, begun[2][place], summed)
        return summed.index_copy_(0, rows, part.finish(place, begun[2][place], summed[rows]))

    def _mask(self, now: _Pass, part: _Part) -> torch.Tensor:
        """`(rows of the stack, columns)`: 1 where a column is of the row's adapter."""
        key = (part.stack, *part.key)
        found = now.masks.get(key)
        if found is None:
            rows = now.rows[part.stack]
            adapters = now.adapters if rows is None else now.adapters[rows]
            found = now.masks[key] = (adapters[:, None] == part.owners[None, :]).to(self._dtype)
        return found

    def _parts(self, stack: int, members: Sequence[int]) -> Iterator[tuple[Sequence[str], _Part]]:
        """The names of layers that share an input, and what is computed of them."""
        by_layer: dict[str, list[_Matrices]] = {}
        for member in members:
            for pair, a, b in self._folders[member]:
                by_layer.setdefault(pair.layer, []).append(_Matrices(member, a, b))
        for layers in sharing(by_layer):
            yield layers, self._part(stack, [by_layer[layer] for layer in layers])

    def _part(self, stack: int, layers: Sequence[Sequence[_Matrices]]) -> _Part:
        packs = self._device.type == "cpu" and can_pack(self._dtype)
        owners = tuple(one.adapter for found in layers for one in found for _ in range(one.a.shape[0]))
        down = torch.cat([one.a for found in layers for one in found])
        ups = [torch.cat([one.b for one in found], dim=1).contiguous() for found in layers]
        sizes, columns = [up.shape[0] for up in ups], [up.shape[1] for up in ups]
        factor = PackedFactor if packs else PlainFactor
        part = _Part(stack, factor(down), torch.tensor(owners, device=self._device), owners, columns, [], sizes)
        if len(layers) == 1 or sum(sizes) * sum(columns) > AT_ONCE:
            part.ups = [factor(up) for up in ups]
        else:
            whole: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
            part.at_once = PackedLinear(whole, None).forward if packs else partial(functional.linear, weight=whole)
        return part

    def _sound(self, pair: LoraPair, matrix: torch.Tensor) -> torch.Tensor:
        """In the type computed with. A mask of zeros keeps off all but what is infinite. Raises AdapterError."""
        largest = float(matrix.abs().max())
        if largest > torch.finfo(self._dtype).max ** 0.5:
            raise AdapterError(
                f"it has numbers as large as {largest:.3g} for {pair.layer[:120]}, with which its base computes none. "
                "hint: its training has diverged"
            )
        return matrix.to(self._dtype)

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
