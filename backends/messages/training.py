"""The words between the server and a training process: one recipe goes in, what happens comes back, then one end.

A process that dies without one of `TRAIN_ENDS` has crashed; its last whole checkpoint is where the next one goes on.
"""

from __future__ import annotations

from typing import Final, Literal

from backends.messages.plain import Plain
from backends.messages.plans import Device

TrainMethod = Literal["lora", "qlora", "full"]
TrainQuantization = Literal["none", "8bit", "nf4"]
TrainForm = Literal["chat", "completion", "text"]
TrainFailure = Literal["bad_data", "bad_model", "out_of_memory", "disk", "diverged", "failed"]

ALL_LINEAR: Final = "all-linear"
"""As `Recipe.targets`: every linear layer but the output head."""


class Recipe(Plain, frozen=True):
    """Everything a fine-tuning job is made of, with no default left open: the same recipe gives the same steps."""

    base: str
    """The folder of the model that is taught; it is only read."""
    folder: str
    """The job's own: checkpoints in `checkpoints/`, what it gives in `result/`."""
    training_file: str
    form: TrainForm
    column: str = "text"
    """Where the text stands, of form `text`."""
    method: TrainMethod = "lora"
    quantization: TrainQuantization = "none"
    """How the base's weights are held meanwhile; `qlora` means `nf4` or `8bit`, `full` means `none`."""
    rank: int = 16
    alpha: float = 32.0
    targets: str | tuple[str, ...] = ALL_LINEAR
    """Ends of names of linear layers (`q_proj`), or ALL_LINEAR."""
    n_epochs: int = 3
    micro_batch: int = 1
    """Examples in one forward pass."""
    accumulation: int = 1
    """Forward passes in one step; `micro_batch * accumulation` examples are the effective batch."""
    learning_rate: float = 2e-4
    warmup_share: float = 0.05
    """Of all steps, in which the rate grows from 0; it falls to 0 as a cosine afterwards."""
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    max_length: int = 1024
    """Tokens of one example, or of one packed row."""
    cut_long: bool = False
    """An example with more tokens is cut; else it ends the job with its line number."""
    packing: bool = False
    """Several examples share a row, and attend to none but their own tokens."""
    gradient_checkpointing: bool = True
    seed: int = 0
    validation_file: str = ""
    """Empty: none."""
    evaluation_share: float = 0.0
    """Of the training file's examples, kept back for evaluation where there is no validation file."""
    checkpoint_every_steps: int = 0
    """0: by time alone, and at the end of every epoch."""
    checkpoint_every_s: float = 300.0
    device: Device = "cpu"
    threads: int = 0
    """0 means as many as the machine has physical cores for us."""
    memory_bytes: int = 0
    """Of the device that the job may take; 0: no limit of its own."""

    @property
    def effective_batch(self) -> int:
        """Examples, or packed rows, that one step learns from."""
        return self.micro_batch * self.accumulation


class Train(Plain, tag="train", frozen=True):
    """The first frame: begin, or go on from the newest whole checkpoint in the recipe's folder."""

    recipe: Recipe


class Leave(Plain, tag="leave", frozen=True):
    """Save at the next boundary between steps, and end with `TrainLeft`."""


class TrainStarted(Plain, tag="train_started", frozen=True):
    """The model is loaded and the data is read."""

    steps: int
    """Of the whole job."""
    examples: int
    evaluation_examples: int
    trainable_parameters: int
    resumed_step: int
    """Steps that a checkpoint holds; 0: from the beginning."""
    cut_examples: int = 0
    """Those that were longer than `Recipe.max_length` and lost their ends."""


class TrainStep(Plain, tag="train_step", frozen=True):
    """One optimiser step is done."""

    step: int
    """From 1."""
    loss: float
    """Mean over the tokens that are learnt, in nats."""
    learning_rate: float
    tokens: int
    """That the job has been trained on so far."""
    seconds_left: float
    memory_bytes: int = 0
    """The most that the device, or without a card this process, has held so far."""


class TrainEvaluated(Plain, tag="train_evaluated", frozen=True):
    """What the evaluation's examples say, after an epoch."""

    epoch: int
    """From 1; 0: before the first step."""
    step: int
    loss: float
    perplexity: float
    """`exp(loss)`."""
    token_accuracy: float
    """Share of tokens that were the likeliest, 0..1."""
    best: bool = False
    """Lower than all before it: the result will be what the model is now, unless a later one is better."""


class CheckpointSaved(Plain, tag="checkpoint_saved", frozen=True):
    """A whole checkpoint lies on the disk."""

    step: int
    folder: str


class MicroBatchHalved(Plain, tag="micro_batch_halved", frozen=True):
    """Memory was short; the effective batch stays what it was."""

    micro_batch: int
    accumulation: int
    why: str


class TrainFinished(Plain, tag="train_finished", frozen=True):
    """The result is whole: an adapter's folder as peft writes it, or a model folder of method `full`."""

    folder: str
    trained_tokens: int
    steps: int
    lost_best_step: int = 0
    """A step that was better than the last, whose checkpoint could not be read; 0: none, the result is the best."""


class TrainLeft(Plain, tag="train_left", frozen=True):
    """Ended at a `Leave`, with everything in a checkpoint."""

    step: int


class TrainFailed(Plain, tag="train_failed", frozen=True):
    """It cannot go on, and would not if it was started again as it is."""

    message: str
    code: TrainFailure = "failed"


TrainCommand = Train | Leave
TrainReport = (
    TrainStarted
    | TrainStep
    | TrainEvaluated
    | CheckpointSaved
    | MicroBatchHalved
    | TrainFinished
    | TrainLeft
    | TrainFailed
)
TRAIN_ENDS: Final = (TrainFinished, TrainLeft, TrainFailed)
