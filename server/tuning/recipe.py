"""What a job does, of what was asked for and what is known of its files and its memory. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from backends.messages.training import ALL_LINEAR, Recipe, TrainForm, TrainMethod
from backends.plan import Amount
from server.settings.sizes import format_size
from server.tuning.job import LEARNING_RATES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends.messages import Device
    from backends.plan import Footprint
    from server.tuning.estimate import Estimate
    from server.tuning.job import Wanted

_MOST_LENGTH: Final = 2048
"""Tokens of an example, where that is left open; more has to be asked for."""
_TEMPLATE_TOKENS: Final = 128
"""That a chat template may add to an example."""
_LEAST_EXAMPLES: Final = 100
"""A smaller file is gone through more often, as if it had so many examples three times over."""
_MOST_EPOCHS: Final = 10
_BATCH: Final = 8
_EVALUATION_SHARE: Final = 0.1
_LEAST_EVALUATED: Final = 50
"""Examples of a training file of which some are kept back for evaluation, where nothing was said."""
MARGIN: Final = 1.1
"""The estimate of a training is good to one part in ten."""


class NoFitError(Exception):
    """No way of training that was asked for fits into the memory; the text has the sums."""


@dataclass(frozen=True)
class Material:
    """What is known of a job's files and its base."""

    base: Path
    folder: Path
    training_file: Path
    validation_file: Path | None
    form: TrainForm
    n_examples: int
    longest_bytes: int
    text_bytes: int
    """Of all examples."""
    n_ctx_train: int
    """Tokens that the base was made for; 0: not known."""


@dataclass(frozen=True)
class Machine:
    """Where it is trained."""

    device: Device
    budget: Amount


def recipe_of(
    wanted: Wanted, seed: int, material: Material, machine: Machine, estimate: Estimate
) -> tuple[Recipe, Footprint]:
    """The best way of those that were asked for that fits, and what it reserves. Raises NoFitError."""
    least: tuple[Recipe, Footprint] | None = None
    for recipe in _ways(wanted, seed, material, machine.device):
        footprint = estimate(recipe, material.text_bytes)
        if reserved(footprint).within(machine.budget):
            limit = reserved(footprint).device if machine.device == "cuda" else 0
            return msgspec.structs.replace(recipe, memory_bytes=limit), footprint
        if least is None or footprint.amount.total_bytes < least[1].amount.total_bytes:
            least = recipe, footprint
    assert least is not None
    raise NoFitError(_no_fit(*least, machine))


def reserved(footprint: Footprint) -> Amount:
    """What a training is let have."""
    amount = footprint.amount
    return Amount(math.ceil(amount.device * MARGIN), math.ceil(amount.host * MARGIN))


def _ways(wanted: Wanted, seed: int, material: Material, device: Device) -> Iterator[Recipe]:
    """Best first: adapters of the plain base, then of a quantised one; many examples at once before few."""
    methods: tuple[TrainMethod, ...] = ("lora", "qlora") if wanted.method == "auto" else (wanted.method,)
    if wanted.method == "auto" and wanted.quantization is not None:
        methods = ("qlora",)
    batch = wanted.batch_size or _batch(wanted, material.n_examples)
    for method in methods:
        for micro_batch in _micro_batches(wanted, batch):
            for checkpointing in (
                (False, True) if wanted.gradient_checkpointing is None else (wanted.gradient_checkpointing,)
            ):
                yield Recipe(
                    base=str(material.base),
                    folder=str(material.folder),
                    training_file=str(material.training_file),
                    form=material.form,
                    method=method,
                    quantization=(wanted.quantization or "nf4") if method == "qlora" else "none",
                    rank=wanted.rank,
                    alpha=wanted.alpha or 2.0 * wanted.rank,
                    targets=wanted.targets or ALL_LINEAR,
                    n_epochs=wanted.n_epochs or _n_epochs(material.n_examples),
                    micro_batch=micro_batch,
                    accumulation=batch // micro_batch,
                    learning_rate=LEARNING_RATES[method] * (wanted.learning_rate_multiplier or 1.0),
                    max_length=_max_length(wanted, material),
                    cut_long=wanted.cut_long,
                    packing=wanted.packing,
                    gradient_checkpointing=checkpointing,
                    seed=seed,
                    validation_file="" if material.validation_file is None else str(material.validation_file),
                    evaluation_share=_evaluation_share(wanted, material),
                    checkpoint_every_steps=wanted.checkpoint_every_steps,
                    checkpoint_every_s=wanted.checkpoint_every_s,
                    device=device,
                )


def _batch(wanted: Wanted, n_examples: int) -> int:
    """One that a micro-batch which was asked for makes whole."""
    micro = wanted.micro_batch or 1
    return max(1, min(_BATCH, n_examples // _BATCH) // micro) * micro


def _micro_batches(wanted: Wanted, batch: int) -> list[int]:
    """Those that make the batch, the largest first."""
    if wanted.micro_batch is not None:
        return [wanted.micro_batch]
    return [n for n in range(batch, 0, -1) if batch % n == 0]


def _n_epochs(n_examples: int) -> int:
    return min(_MOST_EPOCHS, max(3, math.ceil(3 * _LEAST_EXAMPLES / max(1, n_examples))))


def _max_length(wanted: Wanted, material: Material) -> int:
    """Tokens are never shorter than a byte, so that no example is too long where none has to be."""
    most = material.n_ctx_train or _MOST_LENGTH
    if wanted.max_length is not None:
        return wanted.max_length
    return max(8, min(most, _MOST_LENGTH, material.longest_bytes + _TEMPLATE_TOKENS))


def _evaluation_share(wanted: Wanted, material: Material) -> float:
    if material.validation_file is not None:
        return 0.0
    if wanted.evaluation_share is not None:
        return wanted.evaluation_share
    return _EVALUATION_SHARE if material.n_examples >= _LEAST_EVALUATED else 0.0


def _no_fit(recipe: Recipe, footprint: Footprint, machine: Machine) -> str:
    device, host = machine.budget.device, machine.budget.host
    sides = [(footprint.host, host, "")]
    if machine.device == "cuda":
        sides = [(footprint.device, device, " on the card"), (footprint.host, host, " of host memory")]
    told = " and ".join(
        f"{format_size(math.ceil(parts.total_bytes * MARGIN))}{where} ("
        + " + ".join(f"{name} {format_size(n)}" for name, n in parts.by_name.items() if n)
        + f", and a tenth more), {format_size(budget)} usable"
        for parts, budget, where in sides
        if math.ceil(parts.total_bytes * MARGIN) > budget
    )
    way = f"{recipe.method} with micro-batch {recipe.micro_batch} and max_length {recipe.max_length}"
    return f"the training needs at least {told}, as {way}. hint: a smaller max_length, or a smaller model"
