"""What a training takes, roughly, from the size of a model's files and what every header tells. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from backends.plan import Footprint, Parts

if TYPE_CHECKING:
    from backends.backend import Header
    from backends.messages.training import Recipe

_STORED_BYTES: Final = 2
"""Of a weight in the files."""
_RUNTIME_BYTES: Final = 700 * 2**20
"""A process with PyTorch and transformers."""
_COMPUTED_BYTES: Final = {"cpu": 4, "cuda": 2}
_HELD_BYTES: Final = {"nf4": 0.6, "8bit": 1.1}
_OPTIMISER_BYTES: Final = 12
"""Of a trained weight: its gradient, and two moments, in 32 bits."""


def estimate(header: Header, size_bytes: int, recipe: Recipe) -> Footprint:
    """Of weights on disk of `size_bytes`."""
    n_weights, width = size_bytes / _STORED_BYTES, _COMPUTED_BYTES[recipe.device]
    n_layers = max(1, header.n_layers)
    hidden = math.sqrt(n_weights / (12 * n_layers))
    held = _HELD_BYTES.get(recipe.quantization, width)
    trained = n_weights if recipe.method == "full" else 14 * n_layers * hidden * recipe.rank
    tokens = recipe.micro_batch * recipe.max_length
    kept_layers = 1 if recipe.gradient_checkpointing else n_layers
    parts = {
        "weights": n_weights * held,
        "adapter": 0 if recipe.method == "full" else trained * 4,
        "optimiser": trained * _OPTIMISER_BYTES,
        "activations": tokens * (kept_layers * 34 + n_layers) * hidden * width,
        "logits": tokens * header.n_vocab * 4 * 3,
    }
    whole = {name: math.ceil(n_bytes) for name, n_bytes in parts.items()}
    runtime = {"runtime": _RUNTIME_BYTES}
    if recipe.device == "cuda":
        return Footprint(Parts(further={**whole, "runtime": _RUNTIME_BYTES // 2}), Parts(further=runtime))
    return Footprint(host=Parts(further={**whole, **runtime}))
