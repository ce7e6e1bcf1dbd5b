"""Adapters that carry whole layers of their base, as peft saves them with a head: served where they are its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import demo
from backends.bnb.loading import load
from quantize.adapter import convert
from quantize.errors import QuantizeError
from quantize.order import Order
from quantize.work import run
from tests.adapters.passes import options, prompts_of, together
from tests.adapters.test_files import refused, with_tensors
from tests.adapters.test_parity import by_peft
from tests.quantize.conftest import Silent
from tests.specs import spec_of

pytestmark = pytest.mark.engine
COPY = "base_model.model.lm_head.base_layer.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By peft itself, with its own defaults."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(demo.HF_PATH)
    made = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    torch.manual_seed(3)
    for name, matrix in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(matrix, std=0.1)
    folder = tmp_path_factory.mktemp("peft") / "head"
    made.save_pretrained(str(folder))
    assert COPY in load_file(folder / "adapter_model.safetensors")
    return folder


def changed(saved: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    folder.mkdir()
    for file in saved.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return with_tensors(folder, change)


def test_a_copy_of_the_bases_head_is_no_part_of_what_is_computed(saved: Path, tmp_path: Path) -> None:
    def trained(tensors: dict[str, Any]) -> None:
        tensors[COPY] = tensors[COPY] * np.float16(1.02)

    folders = {"head": saved, "trained": changed(saved, tmp_path / "trained", trained)}
    made: Any = load(spec_of("demo", "bnb", demo.HF_PATH, parallel=2, threads=1, options=options(folders)), print)
    prompt = prompts_of(2)[1]

    (found,) = together(made, [prompt], ["head"])
    told = made.ready().generator.adapters
    made.close()

    (wanted,) = by_peft(saved, [prompt])
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert told["head"] == ""
    assert "lm_head.base_layer.weight with other numbers than its base has. hint: a layer that was" in told["trained"]


def test_a_layer_that_is_not_of_the_bases_shape_is_told_before_a_load(saved: Path, tmp_path: Path) -> None:
    short = changed(saved, tmp_path / "a", lambda t: t.update({COPY: t[COPY][:7].copy()}))
    strange = changed(saved, tmp_path / "b", lambda t: t.update({"base_model.model.classifier.weight": t[COPY]}))

    assert "lm_head.base_layer.weight (F16 7x192), which this model has as F16 1200x192" in refused("bnb", short)
    assert "classifier.weight (F16 1200x192), which this model has not" in refused("bnb", strange)


def test_a_merge_leaves_it_out_and_a_gguf_adapter_is_told_how(saved: Path, tmp_path: Path) -> None:
    (made,) = run(Order(saved, tmp_path / "out", ("hf",), base=Path(demo.HF_PATH)), Silent()).written
    assert not any("base_layer" in name for name in load_file(made / "model.safetensors"))

    with pytest.raises(QuantizeError, match=r"whole layer lm_head.*save_embedding_layers=False\); or merge it: --to"):
        convert(Order(saved, tmp_path / "gguf", ("gguf",), base=Path(demo.GGUF_PATH)), Silent())
    other = changed(saved, tmp_path / "other", lambda t: t.update({COPY: t[COPY] + np.float16(1)}))
    with pytest.raises(QuantizeError, match="other numbers than its base has"):
        run(Order(other, tmp_path / "out2", ("hf",), base=Path(demo.HF_PATH)), Silent())
    assert not (tmp_path / "out2").exists()
