"""One model that learns: steps of the optimiser, evaluation, and what of it goes to the disk and comes back."""

from __future__ import annotations

import contextlib
import gc
import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from backends.files.adapters import PEFT_WEIGHTS
from backends.messages.training import MicroBatchHalved
from backends.pytorch import shortage
from backends.training.errors import TrainError
from backends.training.loss import token_loss
from backends.training.rows import micro_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backends.messages.training import Recipe
    from backends.training.base import Base
    from backends.training.rows import MicroBatch, Rows, Unit

T = TypeVar("T")

WEIGHTS: Final = "weights.safetensors"
_MOMENTS: Final = "optimiser.safetensors"
_BETAS: Final = (0.9, 0.999)
_PARTS: Final = ("exp_avg", "exp_avg_sq")


@dataclass
class Learnt:
    """What one step, or an evaluation, says."""

    loss: float
    n_tokens: int
    n_learnt: int
    n_right: int

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the likeliest."""
        return self.n_right / max(self.n_learnt, 1)


class Learner:
    """See the module's text."""

    def __init__(self, base: Base, recipe: Recipe) -> None:
        self._base = base
        self._recipe = recipe
        self._device = torch.device(recipe.device)
        self._parameters = base.parameters()
        self._picks = "logits_to_keep" in inspect.signature(_plain(base.model).forward).parameters
        self.micro_batch, self.accumulation = recipe.micro_batch, recipe.accumulation
        self._optimiser = torch.optim.AdamW(
            [
                {"params": [p for p in self._parameters.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in self._parameters.values() if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=0.0,
            betas=_BETAS,
            fused=True,  # changes every number in its place, so nothing that could want memory comes in between
        )

    @property
    def n_parameters(self) -> int:
        """Numbers that learn."""
        return sum(p.numel() for p in self._parameters.values())

    def step(
        self,
        rows: Rows,
        lines: Sequence[Unit],
        *,
        number: int,
        learning_rate: float,
        on_halved: Callable[[MicroBatchHalved], None],
    ) -> Learnt:
        """Learn from some lines. `number` is the step's, from 1: what is random in it follows from that alone.

        Raises TrainError where memory is short even for one line at a time, and where the loss is no number.
        """
        self._base.model.train()
        found = self._halving(lambda: self._gradients(rows, lines, number), on_halved)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._recipe.max_gradient_norm))
        if not (math.isfinite(found.loss) and math.isfinite(norm)):
            raise TrainError(
                "diverged",
                f"the loss of step {number} is {found.loss:.3g} and its gradient {norm:.3g}, no numbers to go on with. "
                "hint: a smaller learning rate",
            )
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        return found

    def evaluate(
        self,
        rows: Rows,
        lines: Sequence[Unit],
        *,
        go_on: Callable[[], bool],
        on_halved: Callable[[MicroBatchHalved], None],
    ) -> Learnt | None:
        """The mean loss over all learnt tokens; None once `go_on` says no. Raises TrainError."""
        self._base.model.eval()
        total, n_tokens, n_learnt, n_right, at = 0.0, 0, 0, 0, 0
        with torch.no_grad():
            while at < len(lines):
                if not go_on():
                    return None
                batch, found = self._halving(lambda at=at: self._evaluated(rows, lines, at), on_halved)  # type: ignore[misc]
                total, n_right = total + found[0], n_right + found[1]
                n_tokens, n_learnt, at = n_tokens + batch.n_tokens, n_learnt + batch.n_learnt, at + len(batch.tokens)
        return Learnt(total / max(n_learnt, 1), n_tokens, n_learnt, n_right)

    def _evaluated(self, rows: Rows, lines: Sequence[Unit], at: int) -> tuple[MicroBatch, tuple[float, int]]:
        batch = micro_batch(rows, lines[at : at + self.micro_batch], pad=self._base.pad)
        loss, n_right = self._forward(batch, n_tokens=1.0)
        return batch, (float(loss), int(n_right))

    def _gradients(self, rows: Rows, lines: Sequence[Unit], number: int) -> Learnt:
        """Of all passes of one step, summed into the parameters."""
        self._optimiser.zero_grad(set_to_none=True)
        torch.manual_seed(self._recipe.seed * 1_000_003 + number)
        n_learnt = sum(rows.n_learnt(i) for line in lines for i in line)
        loss_sum, n_tokens, n_right = 0.0, 0, 0
        for at in range(0, len(lines), self.micro_batch):
            batch = micro_batch(rows, lines[at : at + self.micro_batch], pad=self._base.pad)
            loss, right = self._forward(batch, n_tokens=float(n_learnt))
            loss.backward()  # type: ignore[no-untyped-call]
            loss_sum, n_right = loss_sum + float(loss.detach()), n_right + int(right)
            n_tokens += batch.n_tokens
        return Learnt(loss_sum, n_tokens, n_learnt, n_right)

    def _forward(self, batch: MicroBatch, *, n_tokens: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss of the learnt tokens over `n_tokens`, and how many of them were the likeliest."""
        logits, targets = self._logits(batch)
        return token_loss(logits, targets, n_tokens=n_tokens)

    def _logits(self, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """`(n, n_vocab)` before every learnt token, and those `(n,)` tokens."""
        tokens, positions = (torch.from_numpy(part).to(self._device) for part in (batch.tokens, batch.positions))
        asked = batch.learnt[:, 1:]
        columns = np.flatnonzero(asked.any(axis=0))
        picked = torch.from_numpy(asked[:, columns]).to(self._device)
        wanted = torch.from_numpy(columns).to(self._device)
        kept: dict[str, Any] = {"logits_to_keep": wanted} if self._picks else {}
        with self._mixed():
            answer = self._base.model(input_ids=tokens, position_ids=positions, use_cache=False, **kept)
        logits = answer.logits if self._picks else answer.logits[:, wanted]
        del answer
        targets = tokens[:, 1:][:, wanted]
        if bool(picked.all()):
            return logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        return logits[picked], targets[picked]

    def _mixed(self) -> contextlib.AbstractContextManager[Any]:
        if self._base.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._base.dtype)

    def _halving(self, compute: Callable[[], T], on_halved: Callable[[MicroBatchHalved], None]) -> T:
        """Compute; where memory is short, again with fewer lines a pass. Raises TrainError."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not shortage.is_shortage(error):
                    raise
                why = shortage.told(error)
            self._forget()
            if self.micro_batch == 1:
                raise TrainError("out_of_memory", _no_smaller(why, self._recipe))
            self.micro_batch, self.accumulation = halved(self.micro_batch, self.accumulation)
            on_halved(MicroBatchHalved(self.micro_batch, self.accumulation, why))

    def _forget(self) -> None:
        """Free what a pass that failed has left."""
        self._optimiser.zero_grad(set_to_none=True)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def save(self, folder: Path) -> None:
        """What learns and the optimiser's moments. Raises what the disk raises."""
        self.save_weights(folder)
        save_file(self._moments(), folder / _MOMENTS)

    def save_weights(self, folder: Path) -> None:
        """An adapter's folder as peft reads it; of method `full` the parameters by their names."""
        found = {name: value.detach().contiguous() for name, value in self._parameters.items()}
        if self._recipe.method == "full":
            save_file(found, folder / WEIGHTS)
        else:
            save_file(found, folder / PEFT_WEIGHTS, metadata={"format": "pt"})
            self._base.model.peft_config["default"].save_pretrained(folder)

    def restore(self, folder: Path) -> None:
        """What `save` has written. Raises TrainError for another model's."""
        self.restore_weights(folder)
        moments = load_file(folder / _MOMENTS)
        for name, value in self._parameters.items():
            if f"step.{name}" not in moments:  # it had no gradient so far
                continue
            state = self._optimiser.state[value]
            state["step"] = moments[f"step.{name}"].to(self._device)
            for part in _PARTS:
                state[part] = moments[f"{part}.{name}"].to(self._device)

    def restore_weights(self, folder: Path) -> None:
        """The weights alone."""
        stored = load_file(folder / (WEIGHTS if self._recipe.method == "full" else PEFT_WEIGHTS))
        shapes = {name: tuple(value.shape) for name, value in self._parameters.items()}
        if {name: tuple(value.shape) for name, value in stored.items()} != shapes:
            raise TrainError("failed", f"the checkpoint {folder.name} is of another model. hint: a new job")
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(stored[name])

    def _moments(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, value in self._parameters.items():
            state = self._optimiser.state.get(value)
            if not state:
                continue
            found[f"step.{name}"] = state["step"].reshape(())
            found.update({f"{part}.{name}": state[part].contiguous() for part in _PARTS})
        return found


def halved(micro: int, accumulation: int) -> tuple[int, int]:
    """The next smaller share of an effective batch that stays what it is."""
    effective = micro * accumulation
    smaller = next(n for n in range(micro // 2, 0, -1) if effective % n == 0)
    return smaller, effective // smaller


def _no_smaller(why: str, recipe: Recipe) -> str:
    ways = [f"max_length below {recipe.max_length}"]
    if not recipe.gradient_checkpointing:
        ways.append("gradient_checkpointing")
    if recipe.quantization != "nf4":
        ways.append("method qlora" if recipe.method != "full" else "method lora or qlora")
    return f"memory is short even for one example at a time: {why}. hint: {', '.join(ways)}"


def _plain(model: Any) -> Any:
    """Without peft around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
