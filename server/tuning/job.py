"""One fine-tuning job as data: what was asked, what it is at, and which state may follow which. Pure.

validating_files -> queued | failed | cancelled; queued -> running | paused | failed | cancelled; running -> queued |
paused | succeeded | failed | cancelled; paused -> queued | cancelled. A job that leaves for a model, whose process
crashed or whose server ended is queued again, and goes on where its last checkpoint is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from backends.messages.training import Recipe, TrainMethod

State = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
FOLLOWS: Final[Mapping[State, frozenset[State]]] = {
    "validating_files": frozenset(("queued", "failed", "cancelled")),
    "queued": frozenset(("running", "paused", "failed", "cancelled")),
    "running": frozenset(("queued", "paused", "succeeded", "failed", "cancelled")),
    "paused": frozenset(("queued", "cancelled")),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
LEARNING_RATES: Final[Mapping[TrainMethod, float]] = {"lora": 2e-4, "qlora": 2e-4, "full": 5e-5}
"""What a multiplier of 1 means."""
OPEN: Final = tuple(state for state, after in FOLLOWS.items() if after)
"""States of jobs that have not ended."""
Kind = Literal["auto", "lora", "qlora", "full"]


class Wanted(msgspec.Struct, kw_only=True, frozen=True):
    """Hyperparameters as they were asked for; None leaves one to the server."""

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    method: Kind = "auto"
    quantization: Literal["nf4", "8bit"] | None = None
    rank: int = 16
    alpha: float | None = None
    """None: twice the rank."""
    targets: tuple[str, ...] = ()
    """None of them: every linear layer."""
    max_length: int | None = None
    cut_long: bool = False
    packing: bool = False
    evaluation_share: float | None = None
    gradient_checkpointing: bool | None = None
    micro_batch: int | None = None
    checkpoint_every_steps: int = 0
    checkpoint_every_s: float = 300.0


class JobError(msgspec.Struct, frozen=True):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None = None


class JobProgress(msgspec.Struct, frozen=True):
    """How far the training is."""

    step: int
    steps: int
    epoch: float
    loss: float | None
    tokens: int
    seconds_left: float | None
    """None while it does not run."""


class JobRecord(msgspec.Struct, kw_only=True):
    """What is kept of a job beside its state and owner. Times are seconds since 1970."""

    model: str
    """The base, as it is configured."""
    training_file: str
    validation_file: str | None
    created_at: int
    seed: int
    wanted: Wanted
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    n_examples: int = 0
    recipe: Recipe | None = None
    """What is done; None until the files have been read."""
    device_bytes: int = 0
    host_bytes: int = 0
    """The memory that the training takes, as it is estimated."""
    disk_bytes: int = 0
    """The most that it writes."""
    progress: JobProgress | None = None
    started_at: int | None = None
    finished_at: int | None = None
    trained_tokens: int | None = None
    fine_tuned_model: str | None = None
    result_folder: str | None = None
    """What is served; None once the model was removed."""
    result_files: list[str] = []
    error: JobError | None = None
    crashes: int = 0
    """Processes that ended without a word since the last checkpoint."""


@dataclass(frozen=True)
class Job:
    """One job as it is now."""

    place: int
    id: str
    owner: str
    state: State
    record: JobRecord

    @property
    def short_id(self) -> str:
        """What tells it apart in the name of its model."""
        return self.id.removeprefix("ftjob-")[:8]

    @property
    def model_name(self) -> str:
        """What its model will be called."""
        return f"ft:{self.record.model}:{self.record.suffix or 'tuned'}:{self.short_id}"


@dataclass(frozen=True)
class TunedModel:
    """What a job has made."""

    name: str
    base: str
    path: str
    whole: bool
    """A model folder of its own; else an adapter of its base."""


def tuned_model(job: Job) -> TunedModel | None:
    """What a job has made that is still there."""
    record = job.record
    if job.state != "succeeded" or record.result_folder is None or record.recipe is None:
        return None
    name = record.fine_tuned_model or job.model_name
    return TunedModel(name, record.model, record.result_folder, whole=record.recipe.method == "full")
