"""What a training step really holds on a CPU: the blocks that PyTorch takes and gives back, by its own account."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from backends.messages.training import Recipe
from backends.training import data
from backends.training.base import Base, open_base
from backends.training.learner import Learner
from backends.training.rows import units


def peak_bytes(recipe: Recipe) -> int:
    """Of the second step, when the optimiser has its moments: what stays, and the most that comes beside it."""
    base = open_base(recipe, lambda _: None)
    rows = data.load(recipe, base.encoder, look=lambda: None).learn
    learner = Learner(base, recipe)
    lines = units(rows, packing=False, max_length=recipe.max_length)[: recipe.effective_batch]

    def step(number: int) -> None:
        learner.step(rows, lines, number=number, learning_rate=1e-3, on_halved=_no_shortage)

    step(1)
    stays = _staying_bytes(base, learner)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        step(2)
    assert told.profiler is not None
    blocks = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for block in sorted(blocks, key=lambda event: event.start_ns()):
        held += block.nbytes()
        most = max(most, held)
    assert abs(held) < 2**16, "a step leaves nothing behind"
    return stays + most


def _staying_bytes(base: Base, learner: Learner) -> int:
    """Weights, also as bitsandbytes packs them, and the optimiser's moments: blocks that several share once."""
    found: dict[int, int] = {}

    def add(*values: Any) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()

    for value in (*base.model.parameters(), *base.model.buffers()):
        state = getattr(value, "quant_state", None)
        add(value, *(getattr(part, name, None) for part in (state, getattr(state, "state2", None))
                     for name in ("absmax", "code", "offset")))  # fmt: skip
        add(getattr(value, "CB", None), getattr(value, "SCB", None))
    for state in learner._optimiser.state.values():
        add(*state.values())
    return sum(found.values())


def _no_shortage(report: object) -> None:
    raise AssertionError(f"memory was short: {report}")
