"""The engine that draws: one step of all images of one size at a time, each image at its own step.

An image joins and leaves between steps. Sizes take turns. A card computes all of them in one forward pass; a processor
gains nothing by that, and each image has its own, so that it is the same to the last bit whatever else is drawn.
Images of one adapter share their passes with each other alone.
"""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import torch

from backends.diffusion import wishes
from backends.diffusion.canvas import Canvas
from backends.diffusion.denoising import begun
from backends.diffusion.kind import MAX_STEPS, Draw, Picture, Preview, Progressed, size_problem
from backends.diffusion.sources import read as read_source
from backends.engine import JobError, not_served
from backends.messages import Finished, Step
from backends.pytorch import shortage
from backends.stateless import StatelessEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from backends.diffusion.denoising import Denoising
    from backends.diffusion.header import DrawHeader
    from backends.diffusion.kind import DrawFacts
    from backends.diffusion.painter import Painter
    from backends.messages import Event, Job, Ready

_TOKEN_PIXELS = 256
"""Of an image are counted as one token."""


@dataclass(frozen=True)
class Defaults:
    """What the model is configured for, where a job does not say."""

    steps: int
    guidance: float
    scheduler: str
    failing: Mapping[str, str] = field(default_factory=dict)
    """Schedulers that the folder's configuration is nothing for, and why."""


class DrawEngine(StatelessEngine[Canvas, "DrawFacts"]):
    """See `backends.engine.Engine`."""

    takes: Sequence[type[Job]] = (Draw,)

    def __init__(self, painter: Painter, defaults: Defaults, header: DrawHeader, ready: Ready[DrawFacts]) -> None:
        super().__init__(ready)
        self._painter, self._defaults, self._header = painter, defaults, header
        self._reading = threading.Lock()  # memory is reserved for one image on its way at a time

    def prepare(self, job: Draw) -> Canvas:
        """Check what is asked, and read the prompt and the files; from the preparer's thread. Raises JobError."""
        job, sides = self._adapted(job), self._header.sides
        with self._reading:
            source = read_source(job, sides)
        size = (job.width, job.height) if job.width else self._header.size
        if source is not None:
            size = source.pixels.shape[1], source.pixels.shape[0]
        guidance = self._defaults.guidance if job.guidance is None else job.guidance
        _refuse("size", size_problem(*size, sides))
        _refuse("guidance_scale", wishes.guidance_problem(self._header, job.guidance))
        _refuse("negative_prompt", wishes.negative_problem(self._header, guidance) if job.negative_prompt else None)
        _refuse("short_prompt", wishes.short_problem(self._header) if job.short_prompt else None)
        is_free = self._header.guidance == "free" and guidance > 1
        prompt = self._painter.read(job.prompt, "prompt", job.short_prompt)
        negative = self._painter.read(job.negative_prompt, "negative_prompt") if is_free else None
        denoising = self._denoising(job, size)
        first = 0 if source is None else _first_step(denoising, job.strength)
        return Canvas(
            job=job,
            size=size,
            prompt=prompt,
            negative=negative,
            guidance=guidance,
            denoising=denoising,
            chance=torch.Generator().manual_seed(job.seed),
            n_tokens=self._painter.n_tokens(job.prompt),
            source=source,
            first_step=first,
            step=first,
        )

    def _adapted(self, job: Draw) -> Draw:
        """With an adapter only where that changes something. Raises JobError for one that is not served."""
        if job.adapter and (why := self._ready.facts.adapters.get(job.adapter)) != "":
            raise not_served(job.adapter, why)
        return job if job.adapter_scale else msgspec.structs.replace(job, adapter="")

    def _denoising(self, job: Draw, size: tuple[int, int]) -> Denoising:
        steps = job.steps or min(MAX_STEPS, max(1, round(self._defaults.steps * job.effort)))
        name = job.scheduler or self._defaults.scheduler
        _refuse("scheduler", wishes.scheduler_problem(self._header, name))
        _refuse("scheduler", wishes.failing_problem(self._defaults.failing, name))
        try:
            return begun(self._header, self._painter.scheduler_config, name, steps, size)
        except (ValueError, IndexError, ZeroDivisionError) as error:
            told = " ".join(str(error).split())[:200]
            raise JobError(
                "invalid_value", f"the scheduler {name} has no {steps} steps: {told}", param="steps"
            ) from None

    def add(self, prepared: Canvas) -> list[Event]:
        """Take a job in; its first step is one of the next."""
        return self._admitted(prepared, prompt_tokens=prepared.n_tokens)

    def step(self) -> Step:
        """One step of every image of the size whose turn it is."""
        if not self._running:
            return Step()
        begin = time.perf_counter_ns()
        size = self._running[0].size
        drawn = sorted((one for one in self._running if one.size == size), key=lambda one: one.job.adapter)
        for canvas in drawn:
            self._running.remove(canvas)
            self._running.append(canvas)
        events: list[Event] = []
        try:
            self._advance(drawn, events)
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            told = f"no memory is left for this image: {shortage.told(error)}. hint: a smaller size"
            for canvas in [one for one in drawn if one in self._running]:
                events += self._failed(canvas, "out_of_memory", told)
        return Step(events=events, n_inputs=len(drawn), duration_us=(time.perf_counter_ns() - begin) // 1000)

    def _advance(self, drawn: Sequence[Canvas], events: list[Event]) -> None:
        """What has ended before memory runs out has told its end."""
        for canvas in drawn:
            canvas.begin(self._painter, self._header.scale)
        noise = self._noise(drawn)
        for canvas in drawn:
            wanted = next(noise)
            if len(canvas.told) > 1:
                unwanted = next(noise)
                wanted = unwanted + canvas.guidance * (wanted - unwanted)
            events += self._stepped(canvas, wanted)

    def _noise(self, drawn: Sequence[Canvas]) -> Iterator[Tensor]:
        """What is noise in each image: with its prompt, then, where there is guidance, without."""
        for images in passes_of(drawn, together=self._painter.device == "cuda"):
            yield from self._painter.noise([row for canvas in images for row in canvas.rows()], drawn[0].size[::-1])

    def _stepped(self, canvas: Canvas, noise: Tensor) -> list[Event]:
        """The events of one more step of one image."""
        clean = canvas.advance(noise)
        events: list[Event] = [Progressed(canvas.id, canvas.n_done, canvas.n_steps)]
        try:
            if (index := canvas.preview) is not None:
                events.append(Preview(canvas.id, index, canvas.file(self._painter, clean)))
            return events + (self._ended(canvas) if canvas.n_done == canvas.n_steps else [])
        except ValueError as error:
            told = f"{error}. hint: other steps, another scheduler or less guidance_scale"
            return [*events, *self._failed(canvas, "internal_error", told)]

    def _ended(self, canvas: Canvas) -> list[Event]:
        data = canvas.file(self._painter, canvas.latents)
        self._running.remove(canvas)
        width, height = canvas.size
        took_s = time.perf_counter() - canvas.begun_s
        usage = Finished(canvas.id, prompt_tokens=canvas.n_tokens, completion_tokens=width * height // _TOKEN_PIXELS)
        return [Picture(canvas.id, data, width, height, took_s), usage]


def passes_of(drawn: Sequence[Canvas], *, together: bool) -> list[list[Canvas]]:
    """Images of one size, those of one adapter behind each other: which share a forward pass."""
    if not together:
        return [[canvas] for canvas in drawn]
    return [list(same) for _, same in itertools.groupby(drawn, key=lambda canvas: canvas.job.adapter)]


def _refuse(param: str, why: str | None) -> None:
    """Raises JobError where there is a reason to."""
    if why is not None:
        raise JobError("invalid_value", why, param=param)


def _first_step(denoising: Denoising, strength: float) -> int:
    """Raises JobError where too little is to be drawn anew."""
    try:
        return denoising.begin(strength)
    except ValueError as error:
        raise JobError("invalid_value", f"{error}. hint: more strength or more steps", param="strength") from None
