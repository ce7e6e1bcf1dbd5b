"""`onecard train --dry-run`: how a model would be taught and what that takes, without a server and without training."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.console import CliError, ExitCode, write
from server.cli.fit import entries_of, facts_of
from server.memory.elsewhere import memory_to_plan_with
from server.memory.learned import data_folder
from server.memory.opening import DeviceError
from server.settings.sizes import format_size
from server.tuning.bases import untaught
from server.tuning.disk import free_bytes, short_of
from server.tuning.estimate import disk_of, estimate_of
from server.tuning.recipe import MARGIN, Machine, Material, NoFitError, recipe_of, reserved

if TYPE_CHECKING:
    from backends.messages.training import Recipe
    from backends.plan import Footprint, Parts
    from backends.training.examples import Checked
    from server.tuning.job import Wanted


def show_plan(model: str, wanted: Wanted, checked: Checked, *, validated: bool, config: Path | None) -> None:
    """Print the plan and its sums. Raises CliError, with exit code 3 where nothing fits."""
    settings, (entry,) = entries_of([model], {}, config)
    header = facts_of(entry).header
    if (why := untaught(entry.path.is_dir(), header.gives)) is not None:
        raise CliError(f"The model '{model}' {why}", ExitCode.USAGE)
    try:
        memory, _ = asyncio.run(memory_to_plan_with(settings.memory))
    except DeviceError as problem:
        raise CliError(str(problem)) from None
    here = Path("/")
    material = Material(
        *(entry.path, here, here, here if validated else None, checked.form, checked.examples, checked.longest_bytes),
        checked.text_bytes,
        header.n_ctx_train,
    )
    machine = Machine(memory.device, memory.ledger.budget)
    try:
        recipe, footprint = recipe_of(wanted, 0, material, machine, estimate_of(header))
    except NoFitError as problem:
        raise CliError(str(problem), ExitCode.DOES_NOT_FIT) from None
    for line in plan_lines(recipe, footprint, checked, machine):
        write(line)
    disk_bytes, folder = disk_of(header)(recipe), data_folder()
    free = format_size(free_bytes(folder))
    write(f"disk        {format_size(disk_bytes)} of {free} free: checkpoints and the result")
    if (short := short_of(folder / "-", disk_bytes)) is not None:
        raise CliError(f"the training has no room: {short}", ExitCode.DOES_NOT_FIT)


def plan_lines(recipe: Recipe, footprint: Footprint, checked: Checked, machine: Machine) -> list[str]:
    """What is done, and the bytes of either memory by component."""
    n_steps = recipe.n_epochs * math.ceil(
        checked.examples * (1 - recipe.evaluation_share) / max(1, recipe.effective_batch)
    )
    base = "" if recipe.quantization == "none" else f" of a base in {recipe.quantization}"
    adapter = "" if recipe.method == "full" else f", rank {recipe.rank}"
    packed = ", packed" if recipe.packing else ""
    lines = [
        f"method      {recipe.method}{base}{adapter}",
        f"examples    {checked.examples} ({checked.form}), {recipe.max_length} tokens each at most{packed}",
        f"steps       about {n_steps}: {recipe.n_epochs} epochs of batches of {recipe.effective_batch} "
        f"(micro-batch {recipe.micro_batch}, accumulation {recipe.accumulation})",
        f"rate        {recipe.learning_rate:g}, gradient checkpointing "
        f"{'on' if recipe.gradient_checkpointing else 'off'}",
    ]
    sides = [("memory", footprint.host, machine.budget.host, reserved(footprint).host)]
    if machine.device == "cuda":
        sides.insert(0, ("card", footprint.device, machine.budget.device, reserved(footprint).device))
    for name, parts, budget, most in sides:
        tenth = f", and {MARGIN - 1:.0%} for what is not foreseen"
        lines.append(f"{name:<12}{format_size(most)} of {format_size(budget)}: {_sums(parts)}{tenth}")
    return lines


def _sums(parts: Parts) -> str:
    return " + ".join(f"{name} {format_size(n)}" for name, n in parts.by_name.items() if n)
