"""The words of a training process survive the wire, and each end of the job is one of them."""

from __future__ import annotations

import pytest

from backends.border.wire import FrameEncoder, WireError, train_command_decoder, train_report_decoder
from backends.messages.training import (
    TRAIN_ENDS,
    CheckpointSaved,
    Leave,
    MicroBatchHalved,
    Recipe,
    Train,
    TrainEvaluated,
    TrainFailed,
    TrainFinished,
    TrainLeft,
    TrainStarted,
    TrainStep,
)

RECIPE = Recipe(
    "/models/demo", "/jobs/1", "/data/facts.jsonl", "chat", targets=("q_proj",), micro_batch=2, accumulation=3
)
REPORTS = [
    TrainStarted(steps=9, examples=3, evaluation_examples=0, trainable_parameters=10, resumed_step=0),
    TrainStep(step=1, loss=2.5, learning_rate=1e-4, tokens=7, seconds_left=3.0),
    TrainEvaluated(epoch=1, step=3, loss=1.0, perplexity=2.72, token_accuracy=0.5, best=True),
    CheckpointSaved(step=3, folder="/jobs/1/checkpoints/3"),
    MicroBatchHalved(micro_batch=1, accumulation=6, why="CUDA out of memory"),
    TrainFinished(folder="/jobs/1/result", trained_tokens=21, steps=9, lost_best_step=3),
    TrainLeft(step=4),
    TrainFailed(message="line 3: no answer", code="bad_data"),
]


def test_what_is_said_survives_the_wire():
    encoder = FrameEncoder()
    assert train_report_decoder().feed(b"".join(map(encoder.frame, REPORTS))) == REPORTS
    commands = [Train(RECIPE), Leave()]
    assert train_command_decoder().feed(b"".join(map(encoder.frame, commands))) == commands
    assert [type(report) for report in REPORTS[-3:]] == [*TRAIN_ENDS]


def test_a_recipe_with_a_field_that_is_not_known_is_refused():
    frame = FrameEncoder().frame(Train(RECIPE)).replace(b"micro_batch", b"macro_batch")
    with pytest.raises(WireError):
        train_command_decoder().feed(frame)


def test_the_effective_batch_is_what_one_step_learns_from():
    assert RECIPE.effective_batch == 6
