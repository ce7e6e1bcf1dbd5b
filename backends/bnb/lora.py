"""Adapters in a loaded transformers model: each row of a flat batch gets what its own sequence's adapter adds.

Small adapters are stacked: their pairs are two matrices for all of them, and a mask keeps each row to its own columns.
So a step costs two small products however many adapters it serves, for a layer or for some that share their input, and
rows of the base stay as they are. On a processor the second product is one with the layers' own (`pytorch.joined`).
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

from backends.bnb import lora_groups
from backends.bnb.lora_pass import Columns, Current, JoinedLinear, LoraPass
from backends.files.adapters import AdapterError
from backends.files.lora_values import read_floats
from backends.pytorch.joined import JoinedLayers
from backends.pytorch.linear import PackedFactor, PackedLinear, PlainFactor, can_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch.utils.hooks import RemovableHandle

    from backends.bnb.lora_groups import Group
    from backends.files.lora_folder import LoraFolder, LoraPair

    Factor = PackedFactor | PlainFactor

_PROBED_ROWS: Final = 3
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

    columns: Columns
    down: Factor
    """`(columns, in)`."""
    widths: list[int]
    """Columns of each layer."""
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
            return [part.contiguous() for part in torch.split(inner, self.widths, dim=1)]
        return torch.split(self.at_once(inner), self.sizes, dim=1)

    def finish(self, place: int, begun: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The sum of a layer's own `(n, out)` and what the adapters add."""
        return self.ups[place].plus(begun, out) if self.at_once is None else out.add_(begun)


@dataclass
class _Begun:
    """By stack, the pass and input that was last, and what was made of it: the next layer may share it."""

    of: dict[int, tuple[LoraPass, _Part, torch.Tensor, Sequence[torch.Tensor]]] = field(default_factory=dict)


class LoraAdapters:
    """See the module's text. Owns what it changes of a model; raises AdapterError for one that cannot be read."""

    def __init__(self, model: Any, *, device: torch.device, dtype: torch.dtype) -> None:
        self._model = model
        head = model.get_output_embeddings()
        self._device, self._dtype = device, dtype
        self._packs = device.type == "cpu" and can_pack(dtype)
        self._folders: list[list[tuple[LoraPair, torch.Tensor, torch.Tensor]]] = []
        self._stack_of: list[int] = []
        self._current, self._begun = Current(), _Begun()
        self._columns: dict[tuple[int, tuple[int, ...]], Columns] = {}
        self._layers = dict(model.named_modules())
        self._head_name = next((name for name, layer in self._layers.items() if layer is head), None)
        self._joined: list[tuple[Sequence[str], JoinedLayers]] = []
        self._hooks: list[RemovableHandle] = []
        self.n_bytes = 0
        """Of all matrices that are computed with, zeros among them, as they lie in memory."""
        self.bytes_within = 0
        """Of those, what lies within the model's own layers, without the zeros that fill oneDNN's blocks up."""

    def add(self, folder: LoraFolder) -> int:
        """Read an adapter's weights; its number. Raises AdapterError, and nothing of it stays."""
        pairs = []
        for pair in folder.pairs:
            a, b = (torch.from_numpy(read_floats(folder.path, side)).to(self._device) for side in (pair.a, pair.b))
            self._check_layer(pair)
            pairs.append((pair, self._sound(pair, a), self._sound(pair, b * pair.scale)))
        self._folders.append(pairs)
        return len(self._folders) - 1

    def attach(self) -> None:
        """Compute with what was added."""
        ranks = [{pair.layer: pair.rank for pair, _, _ in pairs} for pairs in self._folders]
        hooked: dict[str, list[tuple[_Part, int]]] = {}
        self._stack_of = [0] * len(self._folders)
        for group in lora_groups.groups(ranks, self._known()):
            for member in group.members:
                self._stack_of[member] = group.stack
            found = list(self._matrices(group))
            if group.whole and self._join(group, found):
                continue
            part = self._part(group, found)
            for place, layer in enumerate(group.layers):
                hooked.setdefault(layer, []).append((part, place))
        for layer, parts in hooked.items():
            hook = self._hook(parts, of_outputs=layer == self._head_name)
            self._hooks.append(self._layers[layer].register_forward_hook(hook))

    def detach(self) -> None:
        """The model as it was, so that `attach` may begin anew."""
        for hook in self._hooks:
            hook.remove()
        while self._joined:  # one after the other, or all layers would be there twice
            names, joined = self._joined.pop()
            for name, layer in zip(names, joined.apart(), strict=True):
                self._put(name, layer)
            del joined
        self._hooks.clear()
        self._columns.clear()
        self._stack_of, self.n_bytes, self.bytes_within = [], 0, 0

    def drop(self, number: int) -> None:
        """An adapter that the next `attach` leaves out; the others keep their numbers."""
        self._folders[number] = []

    def settle(self) -> None:
        """Nothing is changed any more: free what `attach` began with, for what is computed with has its own order."""
        self._folders.clear()

    def choose(self, adapters: NDArray[np.int64], outputs: NDArray[np.intp]) -> None:
        """Which adapter each row of the next pass has, -1 for none; `outputs` are the rows that reach the head."""
        self._current.choose(self._pass(adapters), self._pass(adapters[outputs]))

    def rest(self) -> None:
        """The pass is over: nothing that it computed is kept until the next one."""
        self._begun.of.clear()
        self._current.choose(None, None)

    def _pass(self, adapters: NDArray[np.int64]) -> LoraPass | None:
        if not self._stack_of or (adapters < 0).all():
            return None
        made = LoraPass(torch.from_numpy(adapters).to(self._device))
        stacks = np.where(adapters < 0, -1, np.take(self._stack_of, np.maximum(adapters, 0)))
        for stack in np.unique(stacks[stacks >= 0]).tolist():
            found = np.flatnonzero(stacks == stack)
            few = found.size < _FEW_ROWS * adapters.size
            made.rows[stack] = torch.from_numpy(found).to(self._device) if few else None
        return made

    def _hook(self, parts: Sequence[tuple[_Part, int]], *, of_outputs: bool) -> Callable[..., torch.Tensor | None]:
        def add(_layer: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor | None:
            now = self._current.of_outputs if of_outputs else self._current.of_rows
            if now is None:
                return None
            x, summed = inputs[0], out.reshape(-1, out.shape[-1])
            now.check(summed.shape[0])
            for part, place in parts:
                if part.columns.stack in now.rows:
                    summed = self._with(now, part, place, x, summed.to(self._dtype))
            return summed.to(out.dtype).view(out.shape)

        return add

    def _with(self, now: LoraPass, part: _Part, place: int, x: torch.Tensor, summed: torch.Tensor) -> torch.Tensor:
        """A layer's output with what the adapters of one stack add to it."""
        stack = part.columns.stack
        rows, begun = now.rows[stack], self._begun.of.get(stack)
        if begun is None or begun[0] is not now or begun[1] is not part or begun[2] is not x:
            flat = x.reshape(-1, x.shape[-1]).to(self._dtype)
            made = part.begin(flat if rows is None else flat[rows], now.mask(part.columns, self._dtype))
            begun = self._begun.of[stack] = (now, part, x, made)
        if rows is None:
            return part.finish(place, begun[3][place], summed)
        return summed.index_copy_(0, rows, part.finish(place, begun[3][place], summed[rows]))

    def _known(self) -> dict[str, lora_groups.Layer]:
        """The model's linear layers. A head is not joined: it has other rows."""
        found = {}
        for name, layer in self._layers.items():
            if (shape := _shape(layer)) is not None:
                packed = layer if isinstance(layer, PackedLinear) and layer.dtype == self._dtype else None
                joins, biased = packed is not None and name != self._head_name, packed is not None and packed.has_bias
                found[name] = lora_groups.Layer(shape[1], shape[0], joins, biased)
        return found

    def _matrices(self, group: Group) -> Iterator[list[_Matrices]]:
        """Of each layer of a group."""
        by_layer: dict[str, list[_Matrices]] = {}
        for member in group.members:
            for pair, a, b in self._folders[member]:
                by_layer.setdefault(pair.layer, []).append(_Matrices(member, a, b))
        yield from (by_layer[layer] for layer in group.layers)

    def _join(self, group: Group, found: Sequence[Sequence[_Matrices]]) -> bool:
        """Put a product of all layers of one input in their place; False where this processor's sums become others."""
        own = [self._layers[name] for name in group.whole]
        by_layer = dict(zip(group.layers, found, strict=True))
        ups = [_up(by_layer.get(name, ()), layer) for name, layer in zip(group.whole, own, strict=True)]
        up: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
        ordered = [by_layer[name] for name in group.whole if name in by_layer]
        joined = JoinedLayers(own, torch.cat([one.a for matrices in ordered for one in matrices]), up)
        if not _keeps_bits(joined, own):
            return False
        columns = self._columns_of(group.stack, ordered)
        for place, name in enumerate(group.whole):
            self._put(name, JoinedLinear(joined, columns, place, self._current))
        self._joined.append((group.whole, joined))
        self.n_bytes += joined.n_bytes
        self.bytes_within += joined.n_bytes_of_up
        return True

    def _put(self, name: str, layer: torch.nn.Module) -> None:
        self._layers[name] = layer.eval()
        self._model.set_submodule(name, layer)

    def _part(self, group: Group, layers: Sequence[Sequence[_Matrices]]) -> _Part:
        ups = [torch.cat([one.b for one in found], dim=1).contiguous() for found in layers]
        sizes = [up.shape[0] for up in ups]
        factor = PackedFactor if self._packs else PlainFactor
        down = factor(torch.cat([one.a for found in layers for one in found]))
        part = _Part(self._columns_of(group.stack, layers), down, list(group.columns), [], sizes)
        self.n_bytes += down.n_bytes
        if group.at_once:
            whole: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
            packed = PackedLinear(whole, None) if self._packs else None
            part.at_once = partial(functional.linear, weight=whole) if packed is None else packed.forward
            self.n_bytes += whole.nbytes if packed is None else packed.n_bytes
        else:
            part.ups = [factor(up) for up in ups]
            self.n_bytes += sum(up.n_bytes for up in part.ups)
        return part

    def _columns_of(self, stack: int, layers: Sequence[Sequence[_Matrices]]) -> Columns:
        owners = tuple(one.adapter for found in layers for one in found for _ in range(one.a.shape[0]))
        made = Columns(stack, torch.tensor(owners, device=self._device))
        return self._columns.setdefault((stack, owners), made)

    def _sound(self, pair: LoraPair, matrix: torch.Tensor) -> torch.Tensor:
        """In the type computed with. A mask of zeros keeps off all but what is infinite. Raises AdapterError."""
        largest = float(matrix.abs().max())
        if not largest <= torch.finfo(self._dtype).max ** 0.5:
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


def _up(matrices: Sequence[_Matrices], layer: PackedLinear) -> torch.Tensor:
    """`(out, columns)` of one layer; no columns where no adapter changes it."""
    if not matrices:
        return torch.zeros(layer.out_features, 0, dtype=layer.dtype)
    return torch.cat([one.b for one in matrices], dim=1)


def _keeps_bits(joined: JoinedLayers, own: Sequence[PackedLinear]) -> bool:
    """Whether rows without an adapter come out as they did: oneDNN chooses the order of a sum by its length."""
    rows = torch.randn(_PROBED_ROWS, joined.in_features).to(own[0].dtype)
    return all(torch.equal(made, layer(rows)) for made, layer in zip(joined.outputs(rows, None), own, strict=True))


def _shape(layer: Any) -> tuple[int, int] | None:
    """`(out, in)` of a linear layer; of transformers' Conv1D they are called otherwise."""
    if hasattr(layer, "out_features") and hasattr(layer, "in_features"):
        return int(layer.out_features), int(layer.in_features)
    return (int(layer.nf), int(layer.nx)) if hasattr(layer, "nf") and hasattr(layer, "nx") else None
