"""What a folder computes with an adapter where layers are others than Llama's: biases, joined layers, Conv1D."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from backends.bnb.loading import load
from tests.adapters.passes import options, prompts_of, together
from tests.adapters.test_merging import adapter_of
from tests.specs import spec_of
from tests.training.test_shapes import base_of

pytestmark = pytest.mark.engine
TARGETS: dict[str, Any] = {
    "Qwen2": ["q_proj", "v_proj", "down_proj"],
    "Phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
    "GPT2": ["c_attn", "c_proj"],
}


def with_biases(base: Path) -> Path:
    """Random ones where a new model has zeros."""
    torch.manual_seed(5)
    tensors = load_file(base / "model.safetensors")
    made = {name: torch.randn_like(t) if name.endswith(".bias") else t for name, t in tensors.items()}
    save_file(made, base / "model.safetensors", {"format": "pt"})
    return base


@pytest.mark.parametrize("name", TARGETS)
def test_rows_are_pefts_and_the_bases_keep_every_bit(name: str, tmp_path: Path) -> None:
    base = with_biases(base_of(name, tmp_path / "base"))
    source = adapter_of(base, tmp_path / "pirate", target_modules=TARGETS[name])
    prompts = prompts_of(3)
    engines: list[Any] = [
        load(spec_of(name, "bnb", base, 64, parallel=4, threads=1, options=chosen), lambda _: None)
        for chosen in (options({"pirate": source}), {})
    ]

    mixed = together(engines[0], prompts, ["", "pirate", ""])
    alone = together(engines[1], prompts, [""] * 3)
    for engine in engines:
        engine.close()

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(source)).eval()
    with torch.no_grad():
        wanted = adapted(torch.tensor([prompts[1]])).logits[0].numpy()
    assert np.abs(mixed[1] - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(mixed[1] - alone[1]).max() > 1e-3 * np.abs(wanted).max(), "it changes something"
    for place in (0, 2):
        assert np.array_equal(mixed[place].view(np.uint32), alone[place].view(np.uint32))
