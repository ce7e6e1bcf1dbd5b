"""Which layers' adapters are computed at once, because models give those layers one input. Light: no PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from backends.files.lora_folder import LoraPair

_ONE_INPUT: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Ends of the names of layers that models compute from one input."""
AT_ONCE: Final = 2**19
"""Numbers of a matrix for all layers of one input; a larger one, half of it zeros, would cost more than it saves."""


def sharing(layers: Collection[str]) -> Iterator[Sequence[str]]:
    """Layers in groups of those that models give the same input; whether they do is seen with every pass."""
    groups: dict[tuple[str, Sequence[str]], list[str]] = {}
    for layer in sorted(layers):
        parent, _, end = layer.rpartition(".")
        together = next((ends for ends in _ONE_INPUT if end in ends), (end,))
        groups.setdefault((parent, together), []).append(layer)
    yield from groups.values()


def zeros_beside(pairs: Collection[LoraPair]) -> int:
    """Numbers that one adapter's joined matrices have beyond its own: each row of a group for each of its columns.

    Of some adapters in one matrix it is the sum, or none where that matrix would be too large.
    """
    found = 0
    by_layer = {pair.layer: pair for pair in pairs}
    for layers in sharing(by_layer):
        shapes = [by_layer[layer].b.shape for layer in layers]
        rows, columns = (sum(sizes) for sizes in zip(*shapes, strict=True))
        if rows * columns <= AT_ONCE:
            found += rows * columns - sum(n_rows * n_columns for n_rows, n_columns in shapes)
    return found
