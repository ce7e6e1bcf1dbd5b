"""Which matrices of adapters are computed together, and what they take: layers that share an input, adapters that share
a stack. Pure: a load computes by it, and an estimate counts by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

STACKED_RANK: Final = 64
"""Columns of a stack: more would cost prompts of few adapters more than one product each."""
AT_ONCE: Final = 2**19
"""Numbers of a matrix for all layers of one input; a larger one, half of it zeros, would cost more than it saves."""
_ONE_INPUT: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Ends of the names of layers that models compute from one input."""
_NARROW: Final = 128
"""Columns beside a layer's inputs that cost no more than the call that computes them."""
_SHARE_OF_INPUTS: Final = 8
_ONE_SUM: Final = 1024
"""Inputs that oneDNN adds up in one block; of more it adds blocks up, in which the last bits of a sum are others."""
_BLOCK_ROWS: Final = 64
_BLOCK_ROW_BYTES: Final = 64
"""oneDNN packs a matrix in blocks of 64 outputs and 64 bytes of inputs, and fills the last ones up with zeros."""


@dataclass(frozen=True)
class Layer:
    """What decides how a linear layer is computed with adapters."""

    n_inputs: int
    n_outputs: int
    joins: bool = False
    """A processor computes it packed and unquantised, so that it may become one product with others."""
    has_bias: bool = False


@dataclass(frozen=True)
class Group:
    """Layers of one input, and what one stack of adapters adds to them."""

    stack: int
    members: tuple[int, ...]
    """The adapters of the stack."""
    layers: tuple[str, ...]
    """Those that its adapters change."""
    columns: tuple[int, ...]
    """Ranks of each layer, summed over the adapters."""
    whole: tuple[str, ...]
    """Layers whose own matrices and the adapters' become one product, unchanged ones among them; none: hooks add."""
    at_once: bool
    """The second product of hooks is one of all layers."""

    def n_bytes(self, known: Mapping[str, Layer], value_bytes: int, *, packed: bool) -> int:
        """What is held beside the layers' own matrices; `packed`: in oneDNN's order, the zeros of its blocks included.

        What `pytorch.joined` and `bnb.lora` make of a group, by their shapes.
        """
        n_columns, n_inputs = sum(self.columns), known[self.layers[0]].n_inputs
        made, replaced = [(n_columns, n_inputs)], list[tuple[int, int]]()
        outputs = [known[one].n_outputs for one in self.whole or self.layers]
        if self.whole:
            made.append((sum(outputs), n_inputs + n_columns))
            replaced = [(n_outputs, n_inputs) for n_outputs in outputs]
        elif self.at_once:
            made.append((sum(outputs), n_columns))
        else:
            made += zip(outputs, self.columns, strict=True)
        return sum(_bytes(*shape, value_bytes, packed=packed) for shape in made) - sum(
            _bytes(*shape, value_bytes, packed=packed) for shape in replaced
        )


def groups(adapters: Sequence[Mapping[str, int]], known: Mapping[str, Layer]) -> Iterator[Group]:
    """All groups of some adapters, each the ranks of the layers that it changes; stack by stack.

    A layer that has joined others is theirs: what a later stack adds to it is added by hooks.
    """
    joined: set[str] = set()
    for stack, members in enumerate(stacks([max(one.values(), default=0) for one in adapters])):
        columns: dict[str, int] = {}
        for layer, rank in (pair for member in members for pair in adapters[member].items()):
            columns[layer] = columns.get(layer, 0) + rank
        for layers in _sharing(columns, known):
            widths = tuple(columns[layer] for layer in layers)
            whole = _whole(layers[0], sum(widths), known, joined)
            joined.update(whole)
            numbers = sum(widths) * sum(known[layer].n_outputs for layer in layers)
            at_once = not whole and len(layers) > 1 and numbers <= AT_ONCE
            yield Group(stack, tuple(members), layers, widths, whole, at_once)


def siblings(layer: str) -> list[str]:
    """All layers that models compute from one input with `layer`, itself among them."""
    parent, _, end = layer.rpartition(".")
    return [f"{parent}.{one}" if parent else one for one in _ends(end)]


def stacks(ranks: Sequence[int]) -> list[list[int]]:
    """Adapters that are computed together, in order, by their ranks."""
    made: list[list[int]] = []
    room = 0
    for number, rank in enumerate(ranks):
        if not made or rank > room:
            made.append([])
            room = STACKED_RANK
        made[-1].append(number)
        room -= rank
    return made


def _sharing(layers: Collection[str], known: Mapping[str, Layer]) -> Iterator[tuple[str, ...]]:
    """Layers in groups of those that models give the same input, in the order of their names.

    Layers of unlike widths have two inputs, whatever they are called; whether others have one is seen with every pass.
    """
    made: dict[tuple[str, Sequence[str], int], list[str]] = {}
    for layer in sorted(layers):
        parent, _, end = layer.rpartition(".")
        made.setdefault((parent, _ends(end), known[layer].n_inputs), []).append(layer)
    yield from map(tuple, made.values())


def _whole(layer: str, n_columns: int, known: Mapping[str, Layer], joined: Collection[str]) -> tuple[str, ...]:
    """The layers that become one product with `layer`; none where they cannot."""
    n_inputs = known[layer].n_inputs
    found = tuple(one for one in siblings(layer) if one in known and known[one].n_inputs == n_inputs)
    alike = len({known[one].has_bias for one in found}) == 1
    free = all(known[one].joins and one not in joined for one in found)
    return found if alike and free and _may_join(n_columns, n_inputs) else ()


def _may_join(n_columns: int, n_inputs: int) -> bool:
    """Whether so many columns of adapters beside a layer's inputs are no burden to passes that have none, and leave
    every bit of their sums.
    """
    as_before = not n_inputs <= _ONE_SUM < n_inputs + n_columns
    return as_before and n_columns <= max(_NARROW, n_inputs // _SHARE_OF_INPUTS)


def _ends(end: str) -> Sequence[str]:
    return next((ends for ends in _ONE_INPUT if end in ends), (end,))


def _bytes(n_rows: int, n_columns: int, value_bytes: int, *, packed: bool) -> int:
    row_bytes = n_columns * value_bytes
    if packed:
        n_rows = -(-n_rows // _BLOCK_ROWS) * _BLOCK_ROWS
        row_bytes = -(-row_bytes // _BLOCK_ROW_BYTES) * _BLOCK_ROW_BYTES
    return n_rows * row_bytes
