"""What a training takes of memory, as the ledger has it, and of the disk: sums of `backends.training.price`. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backends.plan import Footprint, Parts
from backends.training.price import price

if TYPE_CHECKING:
    from backends.messages.training import Recipe

Estimate = Callable[["Recipe", int], Footprint]
"""Of a recipe, and the bytes of all its examples."""
DiskBytes = Callable[["Recipe"], int]
"""The most that a recipe writes: its checkpoints and its result."""


def estimate_of(header: Any) -> Estimate:
    """Of a base by its header, which is that of a folder."""

    def estimate(recipe: Recipe, text_bytes: int) -> Footprint:
        told = price(header, recipe, text_bytes=text_bytes)
        computed = {
            "weights": told.weights,
            "adapters": told.adapters,
            "gradients": told.gradients,
            "optimiser": told.optimiser,
            "activations": told.activations,
            "logits": told.logits,
            "runtime": told.runtime,
        }
        if told.on_card:
            beside = {"data": told.data, "runtime": told.host_runtime, "saving": told.host_saving}
            return Footprint(Parts(further=computed), Parts(further=beside))
        return Footprint(host=Parts(further={**computed, "data": told.data}))

    return estimate


def disk_of(header: Any) -> DiskBytes:
    """Of a base by its header."""
    return lambda recipe: price(header, recipe).disk_bytes
