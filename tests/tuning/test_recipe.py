"""What is done of what was asked for: pure."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.messages.training import Recipe
from backends.plan import Amount, Footprint, Parts
from server.tuning.job import Wanted
from server.tuning.recipe import Machine, Material, recipe_of


def made(n_examples: int, **wanted: int) -> Recipe:
    """With memory for anything."""
    material = Material(Path("base"), Path("job"), Path("file"), None, "chat", n_examples, 40, 40 * n_examples, 256)
    footprint = Footprint(host=Parts(further={"weights": 1}))
    recipe, _ = recipe_of(Wanted(**wanted), 0, material, Machine("cpu", Amount(0, 100)), lambda *_: footprint)  # type: ignore[arg-type]
    return recipe


@pytest.mark.parametrize(
    ("n_examples", "micro_batch", "batch"), [(24, None, 3), (24, 4, 4), (24, 2, 2), (1, 16, 16), (800, 3, 6)]
)
def test_a_micro_batch_that_was_asked_for_is_what_is_computed(n_examples, micro_batch, batch):
    recipe = made(n_examples, **({} if micro_batch is None else {"micro_batch": micro_batch}))
    assert recipe.micro_batch == (micro_batch or batch)
    assert recipe.effective_batch == batch
