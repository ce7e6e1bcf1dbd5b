"""A scheduler of diffusers for one image: its times, and what it remembers of earlier steps."""

from __future__ import annotations

import inspect
from typing import Any, Final

import torch
from torch import Tensor

from backends.diffusion.kind import SCHEDULERS
from backends.diffusion.library import scheduler_class

_CONFIG_OF_ITS_OWN: Final = frozenset({"_class_name", "_diffusers_version"})


class Denoising:
    """A scheduler for one image: its times, and what it remembers of earlier steps."""

    def __init__(self, config: dict[str, Any], name: str, steps: int) -> None:
        """Raises ValueError for steps that the scheduler does not have."""
        kind = scheduler_class(SCHEDULERS[name])
        self._scheduler = kind.from_config({k: v for k, v in config.items() if k not in _CONFIG_OF_ITS_OWN})
        self._scheduler.set_timesteps(steps)
        self.times: Tensor = self._scheduler.timesteps
        self.sigma = float(self._scheduler.init_noise_sigma)
        """Of the noise that it begins with."""
        self._steps = steps
        self._takes_chance = "generator" in inspect.signature(self._scheduler.step).parameters

    def scaled(self, latents: Tensor, step: int) -> Tensor:
        """As the network expects them."""
        found: Tensor = self._scheduler.scale_model_input(latents, self.times[step])
        return found

    def after(self, noise: Tensor, latents: Tensor, step: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """The latents of the next step, and what the image would be if all of the noise were known."""
        options = {"generator": chance} if self._takes_chance else {}
        found = self._scheduler.step(noise, self.times[step], latents, **options)
        clean = getattr(found, "pred_original_sample", None)
        return found.prev_sample, found.prev_sample if clean is None else clean

    def begin(self, strength: float) -> int:
        """The first time's number, where so much of an image is drawn anew. Raises ValueError where none is left."""
        n_anew = min(int(self._steps * strength), self._steps)
        if n_anew < 1:
            raise ValueError(f"strength {strength:g} leaves none of {self._steps} steps")
        first = (self._steps - n_anew) * int(getattr(self._scheduler, "order", 1))
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(first)
        return first

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """Latents of an image as they are at a time; without noise behind the last."""
        if step >= len(self.times):
            return clean
        found: Tensor = self._scheduler.add_noise(clean, noise, self.times[step : step + 1])
        return found
