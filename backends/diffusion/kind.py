"""The kind of job: an image to be drawn, what comes back, and what a model for it tells of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from msgspec import field

from backends.kinds import Kind, Limits, Metric
from backends.messages import Event, Facts, Figure, Job, LoadPlan, Part, SpoolFile, told_adapters
from backends.weight import text_bytes

ImageFormat = Literal["png", "jpeg", "webp"]
MAX_CHARS: Final = 32_000
"""Of a prompt; OpenAI's limit. What the text encoder reads is far less."""
MAX_IMAGES: Final = 10
"""Of a request; OpenAI's limit."""
MAX_STEPS: Final = 150
MAX_SIDE: Final = 4096
SMALLEST_SIDE: Final = 64
"""Pixels."""
TILE: Final = 512
"""Pixels of a tile's side, where a plan decodes in tiles."""
MULTIPLE: Final = 8
"""Pixels that both sides are multiples of; some models have more."""
MOST_SCALE: Final = 4.0
"""How strong an adapter may be, either way, of what it was trained for."""
MAX_PREVIEWS: Final = 3
"""Of an image on its way; OpenAI's limit."""
FILE_BYTES: Final = 25 * 2**20
"""Of an image that is sent."""
Encoded = bytes
"""An alias, because a field of that name would hide the type from msgspec."""


class Draw(Job, tag="draw", frozen=True):
    """Draw one image. Answered by `Started`, `Progressed` and `Preview` on the way, `Picture`, `Finished`."""

    prompt: str
    width: int
    height: int
    """Pixels; 0 and 0: the model's own size."""
    seed: int
    """0 .. 2**63 - 1: the same image for the same job."""
    short_prompt: str = ""
    """What CLIP's encoders read in the prompt's place, where T5 reads more than they can."""
    negative_prompt: str = ""
    steps: int = 0
    """0: as the model is configured."""
    effort: float = 1.0
    """Where `steps` is 0: how many of the configured steps."""
    guidance: float | None = None
    """How much more than an image without a prompt; at most 1 turns that off. None: as the model is configured."""
    scheduler: str = ""
    """One of `SCHEDULERS`; empty: as the model is configured."""
    format: ImageFormat = "png"
    quality: int = 90
    """Of jpeg and webp, 0..100."""
    previews: int = 0
    """0..3, at even distances on the way."""
    image: SpoolFile | None = None
    """What it is drawn from; where no size is asked for, the image has its size."""
    mask: SpoolFile | None = None
    """Transparent where that may change; without it the image's own transparency, and all of an image without any."""
    whole: bool = False
    """All of the image may change, whatever of it is transparent."""
    strength: float = 1.0
    """0..1: how much of it is drawn anew."""
    adapter: str = ""
    """The name of the LoRA adapter that draws with the model; empty: the model alone."""
    adapter_scale: float = 1.0
    """How strongly, of what it was trained for; see `MOST_SCALE`."""


class Progressed(Part, tag="progressed", frozen=True):
    """Another step of denoising is done."""

    step: int
    steps: int


class Preview(Part, tag="preview", frozen=True):
    """What the image looks like on its way."""

    index: int
    data: Encoded


class Picture(Part, tag="picture", frozen=True):
    """The image as a file."""

    data: Encoded
    width: int
    height: int
    took_s: float
    """Since the job was begun."""


class DrawFacts(Facts, tag="draw", frozen=True):
    """Of a model that draws."""

    size: str
    """Of an image whose size is not asked for: `512x512`."""
    largest: str
    steps: int
    scheduler: str
    precision: str
    """What is computed in, and what is packed."""
    adapters: dict[str, str] = field(default_factory=dict)
    """Every LoRA adapter that is configured, and why it is not served; empty text where it is."""

    @property
    def told(self) -> Mapping[str, Figure]:
        """What requests get that say nothing, the largest image, and the adapters that are served."""
        return {
            "size": self.size,
            "largest_image": self.largest,
            "steps": self.steps,
            "scheduler": self.scheduler,
            "precision": self.precision,
            **told_adapters(self.adapters),
        }


Offloaded = Literal["none", "text", "parts", "all"]
"""Which networks wait in host memory beside a card and come for their own passes: none, text encoders, these and the
autoencoder, or all, one at a time."""
WAITING: Final[Mapping[Offloaded, str]] = {
    "text": "text encoders",
    "parts": "text encoders and autoencoder",
    "all": "all networks",
}
Quantization = Literal["bnb-4bit", "bnb-8bit", "none"]
"""How linear layers are loaded: of the network that denoises, and of T5."""
PACKED: Final[Mapping[Quantization, str]] = {
    "none": "",
    "bnb-8bit": "linear layers in 8 bits",
    "bnb-4bit": "linear layers in 4 bits (nf4)",
}
SLICES: Final = 8
"""Of an image's cells, where feed-forward layers compute in slices."""


class DrawPlan(LoadPlan, tag="draw", frozen=True):
    """How many images are drawn at once, and how memory is spared."""

    parallel: int
    tiled: bool = False
    """In tiles of `TILE` pixels that overlap, which takes less memory and changes large images a little."""
    sliced: bool = False
    """Feed-forward layers in `SLICES` of an image's cells."""
    offload: Offloaded = "none"
    quantization: Quantization = "none"
    computed_in: str = ""
    """PyTorch's name of the type; for people."""

    @property
    def precision(self) -> str:
        """What is computed in, and what is packed; for people."""
        return ", ".join(word for word in (self.computed_in, PACKED[self.quantization]) if word)

    @property
    def words(self) -> str:
        """For people."""
        told = [f"parallel {self.parallel}"]
        told += ["feed-forward in slices"] if self.sliced else []
        told += [f"{WAITING[self.offload]} in host memory"] if self.offload != "none" else []
        told += ["decoded in tiles"] if self.tiled else []
        return ", ".join([*told, self.precision] if self.precision else told)


def _one(_job: Draw, event: Event) -> float | None:
    return 1.0 if isinstance(event, Picture) else None


def _seconds(_job: Draw, event: Event) -> float | None:
    return event.took_s if isinstance(event, Picture) else None


def _step(_job: Draw, event: Event) -> float | None:
    return 1.0 if isinstance(event, Progressed) else None


PATHS: Final = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")
DRAW: Final = Kind(
    name="draw",
    job=Draw,
    parts=(Progressed, Preview, Picture),
    capability="image_generation",
    gives="images",
    does="draws images",
    lacks="draws no images",
    wanted="a model that draws",
    paths=PATHS,
    forms=PATHS[1:],
    weight=lambda job: (
        text_bytes(job.prompt)
        + text_bytes(job.short_prompt)
        + text_bytes(job.negative_prompt)
        + sum(file.n_bytes for file in (job.image, job.mask) if file is not None)
    ),
    facts=DrawFacts,
    plan=DrawPlan,
    tool="backends.diffusion.tool:TOOL",
    metrics=(
        Metric("images", "counter", "Images that were drawn", _one),
        Metric("image_steps", "counter", "Steps of denoising, each image's counted", _step),
        Metric(
            "image_seconds",
            "histogram",
            "Seconds from an image's first step to its file",
            _seconds,
            edges=(0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 180.0),
        ),
    ),
    limits=Limits(files=("image", "image[]", "mask"), file_bytes=FILE_BYTES, media=("image/*",)),
)
SCHEDULERS: Final[Mapping[str, str]] = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""By the names that requests say: diffusers' classes."""
FLOW_SCHEDULERS: Final[Mapping[str, str]] = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}
"""The same for models that denoise by flow matching."""


class Sides(NamedTuple):
    """What sides a model's images may have, and how many pixels."""

    multiple: int = MULTIPLE
    longest: int = MAX_SIDE
    largest_pixels: int = MAX_SIDE**2


ANY_SIDES: Final = Sides()
"""Of a model that is not known yet."""


def size_problem(width: int, height: int, sides: Sides = ANY_SIDES) -> str | None:
    """Why an image cannot have this size, as a sentence; None where it can."""
    told, (multiple, longest, largest_pixels) = f"the size {width}x{height}", sides
    if width % multiple or height % multiple:
        near = f"{_rounded(width, multiple)}x{_rounded(height, multiple)}"
        return f"{told} has a side that is no multiple of {multiple}. hint: {near}"
    if not (SMALLEST_SIDE <= width <= longest and SMALLEST_SIDE <= height <= longest):
        return f"{told} has a side outside of {SMALLEST_SIDE}..{longest} pixels"
    if width * height > largest_pixels:
        return (
            f"{told} has {width * height} pixels, and this model is loaded for {largest_pixels} at most. "
            "hint: a smaller size, or a larger image_size in the model's configuration"
        )
    return None


def _rounded(side: int, multiple: int) -> int:
    return max(SMALLEST_SIDE, round(side / multiple) * multiple)
