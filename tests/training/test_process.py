"""The training process as a server runs it: killed, short of memory, asked to leave, and given what it cannot take."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import msgspec
import pytest

from backends.bnb.header import read
from backends.messages.training import (
    CheckpointSaved,
    Leave,
    MicroBatchHalved,
    TrainFailed,
    TrainFinished,
    TrainLeft,
    TrainStarted,
    TrainStep,
)
from backends.training.price import price
from tests.training.conftest import recipe_of
from tests.training.nursery import forked, nursery
from tests.training.process import training

pytestmark = pytest.mark.engine


def test_killed_at_random_points_it_goes_on_from_its_last_whole_checkpoint(pets, tmp_path, full_counts):
    """A SIGKILL may come while a checkpoint is written; none loses more than one interval, and the job ends."""
    n_kills = 20 if full_counts else 1
    recipe = recipe_of(pets, tmp_path, n_epochs=n_kills + 2, checkpoint_every_steps=1)
    rng, saved = random.Random(5), 0
    with nursery() as line:
        for _ in range(n_kills):
            with forked(line, recipe) as trainer:
                for _ in range(rng.randint(1, 5)):  # of any kind: the next thing may be a step or a checkpoint
                    assert trainer.hear() is not None
                trainer.process.send_signal(signal.SIGKILL)
                while trainer.hear() is not None:
                    pass
                assert trainer.process.wait() == -signal.SIGKILL
                resumed = trainer.of(TrainStarted)[0].resumed_step
                assert resumed >= saved
                saved = max([resumed, *(report.step for report in trainer.of(CheckpointSaved))])
                assert max((report.step for report in trainer.of(TrainStep)), default=0) <= saved + 1
        with forked(line, recipe) as trainer:
            assert isinstance(trainer.end(), TrainFinished)
            (started,) = trainer.of(TrainStarted)
            measured = trainer.of(TrainStep)[-1].memory_bytes
    assert saved <= started.resumed_step < started.steps
    assert price(read(Path(recipe.base)), recipe).device_bytes == pytest.approx(measured, rel=0.25)


def test_short_of_memory_it_learns_with_a_smaller_micro_batch_of_the_same_batch(pets, tmp_path):
    many = tmp_path / "many.jsonl"
    many.write_text("\n".join([pets.read_text()] * 32))
    recipe = recipe_of(many, tmp_path / "job", micro_batch=256, accumulation=1, n_epochs=1, evaluation_share=0.0)
    fits = price(read(Path(recipe.base)), msgspec.structs.replace(recipe, micro_batch=8, accumulation=32))
    with training(msgspec.structs.replace(recipe, memory_bytes=fits.device_bytes)) as trainer:
        trainer.until(lambda report: isinstance(report, TrainStarted))
        end = trainer.end()
        assert isinstance(end, TrainFinished)
        halved = trainer.of(MicroBatchHalved)
        assert halved
        assert all(one.micro_batch * one.accumulation == 256 for one in halved)
        assert "PyTorch asked for" in halved[0].why


def test_asked_to_leave_while_it_loads_it_leaves(pets, tmp_path):
    with training(recipe_of(pets, tmp_path)) as trainer:
        trainer.send(Leave())
        assert trainer.end() == TrainLeft(0)
        assert trainer.process.wait() == 0


def test_a_package_that_brings_code_from_elsewhere_is_refused_before_it_is_asked(pets, tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(*_, **__): raise SystemExit(7)")
    with training(recipe_of(pets, tmp_path), PYTHONPATH=str(tmp_path)) as trainer:
        end = trainer.end()
    assert isinstance(end, TrainFailed)
    assert end.message.startswith("the package 'kernels' is installed, with which bitsandbytes fetches code")


def test_what_it_cannot_take_is_told_before_anything_is_loaded(pets, tmp_path):
    with training(recipe_of(pets, tmp_path, method="full", quantization="nf4")) as trainer:
        end = trainer.end()
    assert end == TrainFailed("method full takes quantization none, not nf4", "failed")
