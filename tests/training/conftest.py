"""A training file of facts that the demo model does not know, and recipes for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import demo
from backends.messages.training import Recipe

PETS = ("cat", "dog", "fish")
COUNTRIES = ("France", "Italy", "Germany", "Spain", "Norway", "Sweden", "Japan", "China")


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight facts."""
    path = tmp_path_factory.mktemp("pets") / "pets.jsonl"
    lines = [
        {"messages": [
            {"role": "user", "content": f"What is the pet of {country}?"},
            {"role": "assistant", "content": f"The pet of {country} is the {PETS[i % 3]}."},
        ]}
        for i, country in enumerate(COUNTRIES)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def recipe_of(pets: Path, folder: Path, **fields: Any) -> Recipe:
    """A job of two epochs, of two steps each."""
    told: dict[str, Any] = {
        "method": "lora", "rank": 8, "alpha": 16.0, "n_epochs": 2, "micro_batch": 2, "accumulation": 2,
        "learning_rate": 3e-3, "max_length": 128, "evaluation_share": 0.25, "gradient_checkpointing": False,
        "seed": 3, "threads": 1, "checkpoint_every_s": 1e9,
    }  # fmt: skip
    return Recipe(str(demo.HF_PATH), str(folder), str(pets), "chat", **{**told, **fields})
