"""Which matrices of adapters are computed together: layers that share an input, adapters that share a stack. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

STACKED_RANK: Final = 64
"""Columns of a stack: more would cost prompts of few adapters more than one product each."""
AT_ONCE: Final = 2**19
"""Numbers of a matrix for all layers of one input; a larger one, half of it zeros, would cost more than it saves."""
_ONE_INPUT: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Ends of the names of layers that models compute from one input."""
_NARROW: Final = 128
"""Columns beside a layer's inputs that cost no more than the call that computes them."""
_SHARE_OF_INPUTS: Final = 8


def sharing(layers: Collection[str]) -> Iterator[list[str]]:
    """Layers in groups of those that models give the same input; whether they do is seen with every pass."""
    groups: dict[tuple[str, Sequence[str]], list[str]] = {}
    for layer in sorted(layers):
        parent, _, end = layer.rpartition(".")
        together = next((ends for ends in _ONE_INPUT if end in ends), (end,))
        groups.setdefault((parent, together), []).append(layer)
    yield from groups.values()


def siblings(layer: str) -> list[str]:
    """All layers that a model computes from one input with `layer`, itself among them."""
    parent, _, end = layer.rpartition(".")
    together = next((ends for ends in _ONE_INPUT if end in ends), (end,))
    return [f"{parent}.{one}" if parent else one for one in together]


def may_join(n_columns: int, n_inputs: int) -> bool:
    """Whether so many columns of adapters beside a layer's inputs are no burden to passes that have none."""
    return n_columns <= max(_NARROW, n_inputs // _SHARE_OF_INPUTS)


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
