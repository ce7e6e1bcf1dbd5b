"""Training in this process: what is learnt, what a stop changes of it (nothing), and what lies on the disk."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import demo
from backends.files import lora_folder
from backends.messages.training import (
    CheckpointSaved,
    Recipe,
    TrainEvaluated,
    TrainFinished,
    TrainLeft,
    TrainReport,
    TrainStarted,
    TrainStep,
)
from backends.training import job
from backends.training.errors import TrainError
from tests.training.conftest import recipe_of

pytestmark = pytest.mark.engine


class Run:
    """One run of a job in this process."""

    def __init__(self, recipe: Recipe, *, leave_after: int | None = None) -> None:
        self.reports: list[TrainReport] = []
        steps = 0

        def tell(report: TrainReport) -> None:
            nonlocal steps
            steps += isinstance(report, TrainStep)
            self.reports.append(report)

        self.end = job.run(recipe, tell, leaving=lambda: leave_after is not None and steps >= leave_after)

    def of(self, kind: type) -> list[Any]:
        return [report for report in self.reports if isinstance(report, kind)]

    @property
    def losses(self) -> list[float]:
        return [step.loss for step in self.of(TrainStep)]


def test_facts_are_learnt_and_the_adapter_is_one_that_is_served(pets, tmp_path):
    run = Run(recipe_of(pets, tmp_path, n_epochs=6))
    assert isinstance(run.end, TrainFinished)
    started, evaluated = run.of(TrainStarted)[0], run.of(TrainEvaluated)
    assert (started.examples, started.evaluation_examples, started.resumed_step) == (6, 2, 0)
    assert [one.epoch for one in evaluated] == [0, *range(1, 7)]
    assert evaluated[-1].loss < 0.5 * evaluated[0].loss
    assert evaluated[-1].perplexity == pytest.approx(math.exp(evaluated[-1].loss))
    assert [one.best for one in evaluated] == [
        bool(i) and one.loss < min((e.loss for e in evaluated[1:i]), default=9e9) for i, one in enumerate(evaluated)
    ]
    lora_folder.read(Path(run.end.folder))
    base = AutoModelForCausalLM.from_pretrained(demo.HF_PATH, dtype=torch.float32)
    taught = PeftModel.from_pretrained(base, run.end.folder)
    assert any(p.abs().max() > 0 for name, p in taught.named_parameters() if "lora_B" in name)
    config = json.loads((Path(run.end.folder) / "adapter_config.json").read_text())
    assert "/" not in config["base_model_name_or_path"]


def test_a_job_that_left_goes_on_as_if_it_had_not(pets, tmp_path):
    whole = Run(recipe_of(pets, tmp_path / "whole"))
    first = Run(recipe_of(pets, tmp_path / "parts"), leave_after=1)
    assert isinstance(first.end, TrainLeft)
    assert first.end.step == 1
    second = Run(recipe_of(pets, tmp_path / "parts"))
    assert second.of(TrainStarted)[0].resumed_step == 1
    assert first.losses + second.losses == pytest.approx(whole.losses, rel=1e-5)
    one, other = (load_file(tmp_path / name / "result" / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6) for name in one)


def test_a_larger_share_of_the_same_batch_learns_the_same(pets, tmp_path):
    by_one = Run(recipe_of(pets, tmp_path / "one", micro_batch=1, accumulation=4, n_epochs=1))
    at_once = Run(recipe_of(pets, tmp_path / "all", micro_batch=4, accumulation=1, n_epochs=1))
    assert by_one.losses == pytest.approx(at_once.losses, rel=1e-4)


def test_packed_rows_learn_what_rows_alone_do(pets, tmp_path):
    plain = Run(recipe_of(pets, tmp_path / "plain", micro_batch=8, accumulation=1, n_epochs=1, evaluation_share=0.0))
    packed = Run(recipe_of(pets, tmp_path / "packed", packing=True, n_epochs=1, evaluation_share=0.0, max_length=512))
    assert (plain.of(TrainStarted)[0].steps, packed.of(TrainStarted)[0].steps) == (1, 1)
    assert packed.losses == pytest.approx(plain.losses, rel=1e-4)
    assert packed.of(TrainStep)[0].tokens == plain.of(TrainStep)[0].tokens


def test_gradient_checkpointing_changes_no_loss(pets, tmp_path):
    without = Run(recipe_of(pets, tmp_path / "without", n_epochs=1))
    with_it = Run(recipe_of(pets, tmp_path / "with", n_epochs=1, gradient_checkpointing=True))
    assert with_it.losses == pytest.approx(without.losses, rel=1e-5)


def test_checkpoints_of_another_recipe_are_not_resumed(pets, tmp_path):
    recipe = recipe_of(pets, tmp_path)
    Run(recipe, leave_after=1)
    with pytest.raises(TrainError, match="another recipe or other data"):
        Run(msgspec.structs.replace(recipe, learning_rate=1e-4))


def test_checkpoints_of_another_base_are_not_resumed(pets, tmp_path):
    """Its weights have changed, and neither its name nor any shape."""
    base = tmp_path / "base"
    shutil.copytree(demo.HF_PATH, base)
    recipe = msgspec.structs.replace(recipe_of(pets, tmp_path / "job"), base=str(base))
    Run(recipe, leave_after=1)
    file = next(base.glob("*.safetensors"))
    weights = load_file(file)
    save_file({name: value * 1.5 for name, value in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(TrainError, match="are of another base"):
        Run(recipe)


def test_a_base_in_eight_bits_learns(pets, tmp_path):
    run = Run(recipe_of(pets, tmp_path, method="qlora", quantization="8bit", n_epochs=4))
    assert isinstance(run.end, TrainFinished)
    evaluated = run.of(TrainEvaluated)
    assert evaluated[-1].loss < 0.7 * evaluated[0].loss


def test_only_the_newest_and_the_best_checkpoints_stay(pets, tmp_path):
    run = Run(recipe_of(pets, tmp_path, n_epochs=5, checkpoint_every_steps=1))
    saved = {one.step for one in run.of(CheckpointSaved)}
    left = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "checkpoints").iterdir())
    best = [one.step for one in run.of(TrainEvaluated) if one.best][-1]
    assert len(saved) == 10
    assert set(left) == {9, 10, best}


def test_a_best_checkpoint_that_cannot_be_read_is_told(pets, tmp_path):
    recipe = recipe_of(pets, tmp_path)
    Run(recipe, leave_after=3)
    state = tmp_path / "checkpoints" / "step-00000003" / "state.json"
    told = {**json.loads(state.read_text()), "best_step": 2, "best_loss": 0.0}
    state.write_text(json.dumps(told))
    (tmp_path / "checkpoints" / "step-00000002" / "optimiser.safetensors").write_bytes(b"half")

    end = Run(recipe).end

    assert isinstance(end, TrainFinished)
    assert (end.steps, end.lost_best_step) == (4, 2)


def test_over_long_rows_are_told_and_cut_only_when_asked(pets, tmp_path):
    with pytest.raises(TrainError, match=r"line 1: it has \d+ tokens, and max_length is 30. hint") as told:
        Run(recipe_of(pets, tmp_path, max_length=30))
    assert told.value.code == "bad_data"
    cut = Run(recipe_of(pets, tmp_path, max_length=30, cut_long=True, n_epochs=1))
    assert cut.of(TrainStarted)[0].cut_examples == 8
