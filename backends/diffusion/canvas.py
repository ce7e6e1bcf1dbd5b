"""One image on its way from noise to a file: what is asked, its latents, and where it is on its way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backends.diffusion.encoding import encoded
from backends.diffusion.painter import Painter, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.diffusion.denoising import Denoising
    from backends.diffusion.kind import Draw
    from backends.diffusion.painter import Condition, TokenIds
    from backends.diffusion.sources import Source


@dataclass(eq=False)
class Canvas:
    """See above."""

    job: Draw
    size: tuple[int, int]
    """Width and height."""
    prompt: TokenIds
    negative: TokenIds | None
    """None where there is no guidance, or the network is told a number."""
    guidance: float
    denoising: Denoising
    chance: torch.Generator
    n_tokens: int
    source: Source | None
    first_step: int
    """Above 0 where not all of a source is drawn anew."""
    step: int
    """Which is next."""
    told: list[Condition] = field(default_factory=list)
    """The prompt, and behind it what is not wanted."""
    _latents: Tensor | None = None
    _noise: Tensor | None = None
    """What it begins with."""
    _clean: Tensor | None = None
    """The latents of its source."""
    _open: Tensor | None = None
    """`(1, 1, height / 8, width / 8)`: 1 where these may change."""
    begun_s: float = field(default_factory=time.perf_counter)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def n_steps(self) -> int:
        """Forward passes it takes; some schedulers make two of a step."""
        return len(self.denoising.times) - self.first_step

    @property
    def n_done(self) -> int:
        """Of these."""
        return self.step - self.first_step

    @property
    def preview(self) -> int | None:
        """Which preview is due after the step that was done last."""
        marks = [round((i + 1) * self.n_steps / (self.job.previews + 1)) for i in range(self.job.previews)]
        return marks.index(self.n_done) if self.n_done in marks and self.n_done < self.n_steps else None

    @property
    def latents(self) -> Tensor:
        """Of an image that has begun."""
        if self._latents is None:
            raise TypeError("the image has not begun")
        return self._latents

    def begin(self, painter: Painter, scale: int) -> None:
        """Noise, or a source with noise, and the prompt as the network is told it; once."""
        if self._latents is not None:
            return
        width, height = self.size
        noise = painter.first_latents(height // scale, width // scale, self.chance)
        self._latents = noise * self.denoising.sigma
        if self.source is not None:
            self._noise, self._clean = noise, painter.latents(self.source.pixels)
            if self.first_step:
                self._latents = self.denoising.noised(self._clean, noise, self.first_step)
            if self.source.open is not None:
                open_pixels = torch.from_numpy(self.source.open.astype(np.float32))[None, None]
                self._open = functional.max_pool2d(open_pixels, scale).to(noise.device)
        own: Any = {"adapter": self.job.adapter, "adapter_scale": self.job.adapter_scale}
        self.told = [painter.condition(self.prompt, **own)]
        if self.negative is not None:
            empty = not self.job.negative_prompt
            self.told.append(painter.condition(self.negative, is_empty_negative=empty, **own))

    def rows(self) -> Iterator[Row]:
        """What the network is asked next: with the prompt, then, where there is guidance, without."""
        scaled, moment = self.denoising.scaled(self.latents, self.step), self.denoising.times[self.step]
        own = (self.guidance, self.job.adapter, self.job.adapter_scale)
        return (Row(scaled, moment, one, *own) for one in self.told)

    def advance(self, noise: Tensor) -> Tensor:
        """One more step, given what is noise in it: the latents as they would be without any noise."""
        self._latents, clean = self.denoising.after(noise, self.latents, self.step, self.chance)
        self.step += 1
        if self._open is not None and self._clean is not None and self._noise is not None:
            known = self.denoising.noised(self._clean, self._noise, self.step)
            self._latents = self._open * self._latents + (1 - self._open) * known
            clean = self._open * clean + (1 - self._open) * self._clean
        return clean

    def file(self, painter: Painter, latents: Tensor) -> bytes:
        """The image of latents; what of its source may not change is the source's, pixel for pixel.

        Raises ValueError where it came out as no image.
        """
        made = painter.pixels(latents)
        if self.source is not None and self.source.open is not None:
            made = np.where(self.source.open[..., None], made, self.source.pixels)
        return encoded(made, self.job.format, self.job.quality)
