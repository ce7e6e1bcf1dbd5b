"""Architectures that people teach, as tiny random models: each gives an adapter that its base takes; GPT-2 in full."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

import demo
from backends.bnb import adapters
from backends.bnb.header import read
from backends.messages.training import Recipe, TrainEvaluated, TrainFinished, TrainLeft, TrainStep
from backends.training import job
from demo.facts import CAPITALS

pytestmark = pytest.mark.engine

SIZES: dict[str, Any] = {
    "vocab_size": 1200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": 1200, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
SHAPES = {
    "Llama": SIZES,
    "Mistral": {**SIZES, "sliding_window": 32},
    "Qwen2": SIZES,
    "Qwen3": {**SIZES, "head_dim": 16},
    "Phi3": SIZES,
    "Gemma2": {**SIZES, "head_dim": 16, "sliding_window": 32},
    "GPT2": GPT2,
}


def base_of(name: str, folder: Path, **sizes: Any) -> Path:
    """A random model of that architecture, with the demo's tokenizer."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**{**SHAPES[name], **sizes})
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM"
    getattr(transformers, kind)(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(demo.HF_PATH / file, folder / file)
    return folder


def recipe_of(base: Path, folder: Path, **fields: Any) -> Recipe:
    """Sentences of capitals, to be learnt as texts."""
    text = folder / "texts.jsonl"
    lines = [{"text": f"The capital of {country} is {city}. " * 3} for country, city in demo_capitals()]
    text.write_text("\n".join(map(json.dumps, lines)))
    told: dict[str, Any] = {
        "rank": 4, "n_epochs": 1, "micro_batch": 8, "accumulation": 1, "learning_rate": 3e-3, "max_length": 64,
        "packing": True, "seed": 5, "threads": 1, "checkpoint_every_s": 1e9,
    }  # fmt: skip
    return Recipe(str(base), str(folder / "job"), str(text), "text", **{**told, **fields})


def demo_capitals() -> list[tuple[str, str]]:
    return list(CAPITALS.items())[:16]


@pytest.mark.parametrize("name", SHAPES)
def test_an_adapter_of_each_architecture_fits_its_base(name, tmp_path):
    """Packed rows, which each masks in its own way, and checkpointing on: a step is made, and served as it is."""
    base = base_of(name, tmp_path / "base")
    reports: list[Any] = []
    end = job.run(recipe_of(base, tmp_path), reports.append, leaving=lambda: False)
    assert isinstance(end, TrainFinished)
    found = adapters.checked(Path(end.folder), read(base))
    assert found.rank == 4
    assert not any("lm_head" in pair.layer for pair in found.pairs)
    taught = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), end.folder)
    assert sum("lora_A" in key for key in taught.state_dict()) == len(found.pairs)
    assert any(value.abs().max() > 0 for key, value in taught.state_dict().items() if "lora_B" in key)


def test_gpt2_in_full_gets_better_with_every_epoch_and_a_stop_changes_nothing(tmp_path):
    base = base_of("GPT2", tmp_path / "base")
    whole = recipe_of(base, tmp_path, method="full", n_epochs=4, evaluation_share=0.2, packing=False, weight_decay=0.01)
    reports: list[Any] = []
    end = job.run(whole, reports.append, leaving=lambda: False)
    assert isinstance(end, TrainFinished)
    perplexities = [one.perplexity for one in reports if isinstance(one, TrainEvaluated)]
    assert perplexities == sorted(perplexities, reverse=True)
    assert perplexities[-1] < 0.5 * perplexities[0]

    (tmp_path / "again").mkdir()
    parts = recipe_of(base, tmp_path / "again", **{name: getattr(whole, name) for name in ("method", "n_epochs")},
                      evaluation_share=0.2, packing=False, weight_decay=0.01)  # fmt: skip
    again: list[Any] = []
    left = job.run(parts, again.append, leaving=lambda: sum(isinstance(one, TrainStep) for one in again) == 3)
    assert left == TrainLeft(3)
    assert isinstance(job.run(parts, again.append, leaving=lambda: False), TrainFinished)
    resumed = [one.perplexity for one in again if isinstance(one, TrainEvaluated)][-1]
    assert resumed == pytest.approx(perplexities[-1], rel=0.005)

    served = AutoModelForCausalLM.from_pretrained(end.folder)
    assert read(Path(end.folder)).architecture == "gpt2"
    assert served.dtype == torch.float32
