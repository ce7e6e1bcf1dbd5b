"""A scheduler of diffusers for one image: its times, and what it remembers of earlier steps."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from backends.diffusion.families import STEPS
from backends.diffusion.library import of_diffusers
from backends.machine.crash_reason import in_words

if TYPE_CHECKING:
    from backends.diffusion.header import DrawHeader

_ZERO_SNR: Final = "rescale_betas_zero_snr"
_CONFIG_OF_ITS_OWN: Final = frozenset({"_class_name", "_diffusers_version"})


class Denoising:
    """A scheduler for one image: its times, and what it remembers of earlier steps."""

    def __init__(self, scheduler: Any, steps: int) -> None:
        self._scheduler = scheduler
        self.times: Tensor = scheduler.timesteps
        self.sigma = float(getattr(scheduler, "init_noise_sigma", 1.0))
        """Of the noise that it begins with."""
        self._steps = steps
        self._takes_chance = "generator" in inspect.signature(scheduler.step).parameters

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


class Flowing(Denoising):
    """The same by flow matching: latents are on a straight line from the image to the noise, and the network gives the
    line's direction. https://arxiv.org/abs/2209.03003"""

    def scaled(self, latents: Tensor, _step: int) -> Tensor:
        """As they are."""
        return latents

    def after(self, noise: Tensor, latents: Tensor, step: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """See `Denoising.after`; `noise` is the direction."""
        clean = latents - self._scheduler.sigmas[step] * noise
        return super().after(noise, latents, step, chance)[0], clean

    def noised(self, clean: Tensor, noise: Tensor, step: int) -> Tensor:
        """On the line, at a time; the image itself behind the last."""
        if step >= len(self.times):
            return clean
        sigma: Tensor = self._scheduler.sigmas[step]
        return sigma * noise + (1 - sigma) * clean


def begun(header: DrawHeader, config: dict[str, Any], name: str, steps: int, size: tuple[int, int]) -> Denoising:
    """For an image of `size`, by the folder's configuration. Raises ValueError for steps that the scheduler lacks."""
    kind = of_diffusers(header.family.schedulers[name])
    scheduler = kind.from_config({k: v for k, v in config.items() if k not in _CONFIG_OF_ITS_OWN})
    if not header.family.flow:
        scheduler.set_timesteps(steps)
        return Denoising(scheduler, steps)
    given: dict[str, Any] = {}
    if header.is_shifted:
        given["mu"] = _shift(scheduler.config, _tokens(header, size))
    if header.pipeline == "FluxPipeline" and not scheduler.config.get("use_flow_sigmas"):
        given["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(steps, **given)
    return Flowing(scheduler, steps)


def failing(header: DrawHeader, config: dict[str, Any]) -> dict[str, str]:
    """The schedulers that cannot be taken, by our names, and why: what follows the name in a sentence.

    Tried with steps that all have, whatever the model's own number is.
    """
    found = {}
    for name in header.schedulers:
        chance, latents = torch.Generator().manual_seed(0), torch.zeros(1, 1, 1, 1)
        if (why := _unable(header, config, name)) is not None:
            found[name] = why
            continue
        try:
            denoising = begun(header, config, name, STEPS, header.size)
            denoising.after(denoising.scaled(latents, 0), latents, 0, chance)
        except ImportError:
            found[name] = "needs SciPy, which is not installed. hint: `pip install scipy`, or another one"
        except Exception as error:  # what a stranger's configuration makes the library raise
            why = in_words(error)[:200]
            found[name] = f"cannot compute with this folder's scheduler_config.json: {why}. hint: another one"
    return found


def _unable(header: DrawHeader, config: dict[str, Any], name: str) -> str | None:
    """Why a scheduler would draw otherwise than the network was trained; None where it would not."""
    known = inspect.signature(of_diffusers(header.family.schedulers[name]).__init__).parameters
    if config.get(_ZERO_SNR) is True and _ZERO_SNR not in known:
        return "begins with less noise than this model was trained with (zero terminal SNR). hint: ddim or euler"
    return None


def _tokens(header: DrawHeader, size: tuple[int, int]) -> int:
    side = header.scale * header.patch
    return (size[0] // side) * (size[1] // side)


def _shift(config: Any, n_tokens: int) -> float:
    """Larger images begin with more noise: `calculate_shift` of diffusers' pipelines, with its defaults."""
    few, many = float(config.get("base_image_seq_len", 256)), float(config.get("max_image_seq_len", 4096))
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    return low + (n_tokens - few) * (high - low) / (many - few)
