"""Fine-tuning jobs, events and checkpoints as OpenAI's clients read them, with a few fields of ours. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

from server.tuning.job import LEARNING_RATES

if TYPE_CHECKING:
    from server.tuning.job import Job, JobRecord, State
    from server.tuning.store import Checkpoint, JobEvent

_ORGANIZATION: Final = "onecard"


class HyperparametersObject(TypedDict):
    """What the training goes by: as asked for until the files have been read, then as it is."""

    n_epochs: int | Literal["auto"]
    batch_size: int | Literal["auto"]
    learning_rate_multiplier: float | Literal["auto"]
    method: str
    quantization: str | None
    rank: int
    alpha: float
    targets: list[str]
    max_length: int | Literal["auto"]
    cut_long: bool
    packing: bool
    evaluation_share: float | None
    gradient_checkpointing: bool | Literal["auto"]
    micro_batch: int | Literal["auto"]
    checkpoint_every_steps: int
    checkpoint_every_s: float


class SupervisedObject(TypedDict):
    """Of the method."""

    hyperparameters: HyperparametersObject


class MethodObject(TypedDict):
    """How is taught."""

    type: Literal["supervised"]
    supervised: SupervisedObject


class JobErrorObject(TypedDict):
    """Why a job has failed."""

    code: str
    message: str
    param: str | None


class JobProgressObject(TypedDict):
    """How far the training is."""

    step: int
    steps: int
    epoch: float
    loss: float | None
    trained_tokens: int
    seconds_left: float | None


class JobMemoryObject(TypedDict):
    """What the training takes, as it is estimated."""

    device_bytes: int
    host_bytes: int


class JobObject(TypedDict):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    error: JobErrorObject | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: HyperparametersObject
    integrations: list[str]
    metadata: dict[str, str] | None
    method: MethodObject
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: Literal["validating_files", "queued", "running", "succeeded", "failed", "cancelled"]
    suffix: str | None
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    paused: bool
    waiting_for: str | None
    """Why a queued job does not run."""
    progress: JobProgressObject | None
    memory: JobMemoryObject | None


class JobPage(TypedDict):
    """Jobs, a page of them."""

    object: Literal["list"]
    data: list[JobObject]
    has_more: bool
    after: str | None
    """Where the next page begins, as openai-python's README reads it; None behind the last one."""


class JobEventObject(TypedDict):
    """Something that has happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any]


class JobEventPage(TypedDict):
    """Events, a page of them."""

    object: Literal["list"]
    data: list[JobEventObject]
    has_more: bool


class CheckpointObject(TypedDict):
    """A checkpoint of a job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, float]
    step_number: int


class CheckpointPage(TypedDict):
    """Checkpoints, a page of them."""

    object: Literal["list"]
    data: list[CheckpointObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


_STATUS: Final[dict[State, Any]] = {"paused": "queued"}
"""OpenAI's clients know six; a paused job says so in a field of its own."""


def job_object(job: Job, *, now: int, waiting_for: str | None) -> JobObject:
    """As clients read it. `waiting_for`: why a queued job does not run."""
    record = job.record
    hyperparameters = _hyperparameters(record)
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": record.created_at,
        "error": None
        if record.error is None
        else {"code": record.error.code, "message": record.error.message, "param": record.error.param},
        "estimated_finish": _estimated_finish(job, now),
        "fine_tuned_model": record.fine_tuned_model,
        "finished_at": record.finished_at,
        "hyperparameters": hyperparameters,
        "integrations": [],
        "metadata": record.metadata,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "model": record.model,
        "organization_id": _ORGANIZATION,
        "result_files": record.result_files,
        "seed": record.seed,
        "status": _STATUS.get(job.state, job.state),
        "suffix": record.suffix,
        "trained_tokens": record.trained_tokens,
        "training_file": record.training_file,
        "validation_file": record.validation_file,
        "paused": job.state == "paused",
        "waiting_for": waiting_for if job.state == "queued" else None,
        "progress": _progress(job),
        "memory": None
        if record.recipe is None
        else {"device_bytes": record.device_bytes, "host_bytes": record.host_bytes},
    }


def _estimated_finish(job: Job, now: int) -> int | None:
    progress = job.record.progress
    if job.state != "running" or progress is None or progress.seconds_left is None:
        return None
    return now + round(progress.seconds_left)


def _progress(job: Job) -> JobProgressObject | None:
    progress = job.record.progress
    if progress is None:
        return None
    return {
        "step": progress.step,
        "steps": progress.steps,
        "epoch": progress.epoch,
        "loss": progress.loss,
        "trained_tokens": progress.tokens,
        "seconds_left": progress.seconds_left if job.state == "running" else None,
    }


def _hyperparameters(record: JobRecord) -> HyperparametersObject:
    wanted, recipe = record.wanted, record.recipe
    checkpointing = wanted.gradient_checkpointing
    found: HyperparametersObject = {
        "n_epochs": wanted.n_epochs or "auto",
        "batch_size": wanted.batch_size or "auto",
        "learning_rate_multiplier": wanted.learning_rate_multiplier or "auto",
        "method": wanted.method,
        "quantization": wanted.quantization,
        "rank": wanted.rank,
        "alpha": wanted.alpha or 2.0 * wanted.rank,
        "targets": list(wanted.targets),
        "max_length": wanted.max_length or "auto",
        "cut_long": wanted.cut_long,
        "packing": wanted.packing,
        "evaluation_share": wanted.evaluation_share,
        "gradient_checkpointing": "auto" if checkpointing is None else checkpointing,
        "micro_batch": wanted.micro_batch or "auto",
        "checkpoint_every_steps": wanted.checkpoint_every_steps,
        "checkpoint_every_s": wanted.checkpoint_every_s,
    }
    if recipe is not None:
        found["n_epochs"], found["batch_size"] = recipe.n_epochs, recipe.effective_batch
        found["learning_rate_multiplier"] = round(recipe.learning_rate / LEARNING_RATES[recipe.method], 9)
        found["method"] = recipe.method
        found["quantization"] = None if recipe.quantization == "none" else recipe.quantization
        found["max_length"], found["micro_batch"] = recipe.max_length, recipe.micro_batch
        found["evaluation_share"] = recipe.evaluation_share
        found["gradient_checkpointing"] = recipe.gradient_checkpointing
    return found


def event_object(event: JobEvent) -> JobEventObject:
    """As clients read it."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": event.created_at,
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.data,
    }


def checkpoint_object(checkpoint: Checkpoint, job: Job) -> CheckpointObject:
    """As clients read it."""
    known = {
        "step": float(checkpoint.step),
        "train_loss": checkpoint.loss,
        "full_valid_loss": checkpoint.valid_loss,
        "full_valid_mean_token_accuracy": checkpoint.valid_accuracy,
    }
    return {
        "id": checkpoint.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": checkpoint.created_at,
        "fine_tuned_model_checkpoint": f"{job.model_name}:ckpt-step-{checkpoint.step}",
        "fine_tuning_job_id": job.id,
        "metrics": {name: value for name, value in known.items() if value is not None},
        "step_number": checkpoint.step,
    }
