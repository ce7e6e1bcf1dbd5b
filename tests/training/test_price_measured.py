"""What a job is foretold to take against the bytes that its step holds: methods, lengths, micro-batches, two shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.bnb.header import read
from backends.messages.training import Recipe
from backends.training.price import price
from tests.training.live import peak_bytes
from tests.training.test_shapes import base_of

pytestmark = pytest.mark.engine

WIDTHS: dict[str, dict[str, Any]] = {
    "Llama": {"vocab_size": 4000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
              "max_position_embeddings": 256},
    "GPT2": {"vocab_size": 4000, "n_embd": 256, "n_layer": 4, "n_positions": 256},
}  # fmt: skip
WAYS: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {"method": "lora", "micro_batch": 1, "max_length": 256}),
    ("Llama", {"method": "lora", "micro_batch": 4, "max_length": 128, "gradient_checkpointing": True}),
    ("Llama", {"method": "qlora", "quantization": "nf4", "micro_batch": 4, "max_length": 128}),
    ("Llama", {"method": "qlora", "quantization": "8bit", "micro_batch": 1, "max_length": 256}),
    ("Llama", {"method": "full", "micro_batch": 1, "max_length": 256, "gradient_checkpointing": True}),
    ("GPT2", {"method": "full", "micro_batch": 4, "max_length": 128}),
    ("GPT2", {"method": "lora", "micro_batch": 1, "max_length": 256, "gradient_checkpointing": True}),
    ("GPT2", {"method": "full", "micro_batch": 1, "max_length": 128, "accumulation": 2}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: base_of(name, folder / name, **sizes) for name, sizes in WIDTHS.items()}


@pytest.mark.parametrize(("shape", "fields"), WAYS, ids=lambda one: one if isinstance(one, str) else "-".join(
    str(value) for value in one.values()))  # fmt: skip
def test_a_price_is_within_a_tenth_of_what_a_step_holds(shape, fields, bases, tmp_path):
    """Without the runtime and the data, which would hide an error of the sums: PyTorch's own account of its blocks."""
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join([json.dumps({"text": "The capital of France is Paris. " * 60})] * 4))
    told: dict[str, Any] = {"rank": 8, "gradient_checkpointing": False, "cut_long": True, "threads": 1, **fields}
    recipe = Recipe(str(bases[shape]), str(tmp_path), str(text), "text", **told)

    predicted = price(read(bases[shape]), recipe)

    computed = predicted.device_bytes - predicted.runtime - predicted.data
    measured = peak_bytes(recipe)
    print(f"{shape} {fields}: {computed / measured:.3f} of {measured / 2**20:.1f} MiB")
    assert computed == pytest.approx(measured, rel=0.1)
