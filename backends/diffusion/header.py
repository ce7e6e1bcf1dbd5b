"""What a diffusers folder says about itself: its pipeline, the sizes of its networks, the bytes of their tensors.

No class is taken from the folder by its name: only pipelines of `FAMILIES`, and their schedulers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from backends.backend import Header, HeaderError, Setting, version_of_package
from backends.capabilities import counted
from backends.diffusion import single_file
from backends.diffusion.families import FAMILIES, FLUX_GUIDANCE, GUIDANCE, SCHNELL_STEPS, STEPS, Family
from backends.diffusion.kind import DRAW, MAX_SIDE, MULTIPLE, Sides, size_problem
from backends.diffusion.networks import check_networks, config, own_size, patch, scale, text_config
from backends.diffusion.plans import Ways, can_slice, chosen
from backends.diffusion.wishes import AUTO, guidance_problem, scheduler_problem
from backends.files import foreign, model_files, tensors

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backends.diffusion.families import Encoder, Guidance
    from backends.diffusion.kind import Quantization
    from backends.diffusion.single_file import Places
    from backends.files.adapters import Adapter
    from backends.files.tensors import StoredTensor

INDEX: Final = "model_index.json"
WEIGHTS: Final = "diffusion_pytorch_model"
TEXT_WEIGHTS: Final = "model"
NO_OPTIONS: Final[Mapping[str, Setting]] = MappingProxyType({})
_EULER: Final = "take the folder as its publisher has it, with FlowMatchEulerDiscreteScheduler"
_PREDICTS: Final = "prediction_type"
_TIED: Final = "encoder.embed_tokens.weight"
"""T5's name for what some folders store a second time."""


@dataclass(frozen=True)
class DrawHeader(Header):
    """Of one folder."""

    backend: ClassVar[str] = "diffusion"

    pipeline: str
    denoiser: Mapping[str, Any] = field(repr=False)
    """config.json of the network that denoises."""
    vae: Mapping[str, Any] = field(repr=False)
    """config.json of the autoencoder."""
    scheduler: str
    """The folder's own, by our name for it."""
    is_shifted: bool
    """Whether that shifts its times by an image's size."""
    tensors: tuple[StoredTensor, ...] = field(repr=False)
    """Of everything that is loaded; the names begin with the part that they are of."""
    in_file: frozenset[str]
    """The parts that come out of the model's one file; none of a folder."""
    halves: frozenset[str]
    """The parts whose files' names say `.fp16.`; a folder may mix them with plain ones."""
    size: tuple[int, int]
    """Width and height of an image whose size is not asked for."""
    largest: tuple[int, int]
    """Of the largest image that memory is reserved for."""
    ways: Ways
    """How memory is spared, as far as the operator has chosen."""
    trained: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What a model's one file says of its training, before its folder's scheduler_config.json."""
    quantization: Quantization = "none"
    """How linear layers are loaded: of the network that denoises, and of T5."""
    adapters: tuple[Adapter, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def gives(self) -> str:
        """Images."""
        return DRAW.gives

    @property
    def family(self) -> Family:
        """What its pipeline is."""
        return FAMILIES[self.pipeline]

    @property
    def text_encoders(self) -> Mapping[str, Encoder]:
        """Their folders, and what each is."""
        stored = {tensor.name.split(".", 1)[0] for tensor in self.tensors}
        return {name: kind for name, kind in self.family.encoders.items() if name in stored}

    @property
    def layers_per_block(self) -> int:
        """Of a U-Net; the most, where blocks differ."""
        layers = self.denoiser.get("layers_per_block", 1)
        return int(max(layers) if isinstance(layers, list) else layers)

    @property
    def scale(self) -> int:
        """Pixels of a side for each cell of the latents."""
        return scale(self.vae)

    @property
    def patch(self) -> int:
        """Latents of a side that are one token of a transformer."""
        return patch(self.family, self.denoiser)

    @property
    def guidance(self) -> Guidance:
        """How the network is told it."""
        if self.pipeline != "FluxPipeline":
            return "free"
        return "embedded" if self.denoiser.get("guidance_embeds") is True else "none"

    @property
    def own_guidance(self) -> float:
        """Where neither a request nor the table says another."""
        return {"free": GUIDANCE, "embedded": FLUX_GUIDANCE, "none": 0.0}[self.guidance]

    @property
    def own_steps(self) -> int:
        """The same of steps."""
        return SCHNELL_STEPS if self.guidance == "none" else STEPS

    @property
    def schedulers(self) -> Sequence[str]:
        """Those that fit, by our names: what shifts times by an image's size is the folder's own alone."""
        is_alone = self.family.flow and (self.is_shifted or self.pipeline == "FluxPipeline")
        return [self.scheduler] if is_alone else list(self.family.schedulers)

    @property
    def most_tokens(self) -> int:
        """Of a prompt that T5 reads: a Flux without guidance was made for fewer."""
        return self.family.most_tokens // (2 if self.guidance == "none" else 1)

    @property
    def sides(self) -> Sides:
        """What its images may have, up to the largest."""
        return _sides(self.family, self.denoiser, self.vae, self.largest_pixels)

    @property
    def largest_pixels(self) -> int:
        """Of the largest image."""
        return self.largest[0] * self.largest[1]

    @property
    def about(self) -> Mapping[str, str]:
        """For people, by the word for it."""
        return {
            "architecture": self.pipeline.removesuffix("Pipeline"),
            "parameters": counted(sum(tensor.n_elements for tensor in self.tensors)),
            "size": "x".join(map(str, self.size)),
            "largest image": "x".join(map(str, self.largest)),
            "scheduler": self.scheduler,
            **({"predicts": str(self.trained[_PREDICTS])} if _PREDICTS in self.trained else {}),
        }

    @property
    def capabilities(self) -> list[str]:
        """What the model can do, as its `Ready` will say."""
        return ["image_generation"]


def read(path: Path, options: Mapping[str, Setting] = NO_OPTIONS) -> DrawHeader:
    """Read and check a folder, or one file with its folder. Raises HeaderError; blocks."""
    try:
        places = single_file.places(path, options)
        folder = places.folder
        model_files.check_folder(folder)
        index = model_files.read_object(folder / INDEX)
        pipeline = _pipeline(index)
        family = FAMILIES[pipeline]
        denoiser, vae = config(folder, family.denoiser, pipeline), config(folder, "vae")
        check_networks(family, denoiser, vae)
        encoders = [part for part in family.encoders if part != family.optional or _is_there(index.get(part))]
        configs = {family.denoiser: denoiser, "vae": vae}
        for part in encoders:
            configs[part] = text_config(folder, part, index.get(part), family.encoders[part])
        scheduler, is_shifted = _scheduler(folder, family)
        stored, in_file, halves = _weights(places, configs, pipeline)
        trained = single_file.trained(places.file) if places.file is not None and not family.flow else {}
    except model_files.FileError as error:
        raise HeaderError(str(error)) from None
    own, image_size = own_size(family, denoiser, vae), str(options.get("image_size", "auto"))
    largest = own if image_size == "auto" else _parsed(image_size)
    if (why := size_problem(*largest, _sides(family, denoiser, vae, MAX_SIDE**2))) is not None:
        raise HeaderError(f"image_size: {why}")
    size = own if own[0] * own[1] <= largest[0] * largest[1] else largest
    ways, quantization = chosen(options), cast("Quantization", options.get("quantization", "none"))
    header = DrawHeader(
        pipeline,
        denoiser,
        vae,
        scheduler,
        is_shifted,
        tuple(stored),
        in_file,
        halves,
        size,
        largest,
        ways,
        trained,
        quantization,
    )
    _check_wishes(header, options)
    return header


def _weights(
    places: Places, configs: Mapping[str, Mapping[str, Any]], pipeline: str
) -> tuple[list[StoredTensor], frozenset[str], frozenset[str]]:
    """All tensors; the parts that are in the model's one file; those of the others whose files say fp16.

    Raises HeaderError or FileError.
    """
    if places.file is None:
        found, halves = _stored(places.folder, tuple(configs))
        return found, frozenset(), halves
    of_file, optional = single_file.stored(places.file, configs, pipeline), FAMILIES[pipeline].optional
    held = single_file.parts_of(of_file)
    is_nowhere = optional not in held and not any((places.folder / optional).glob("*.safetensors"))
    rest = [part for part in configs if part not in held and not (part == optional and is_nowhere)]
    stored, halves = _stored(places.folder, rest)
    return [*of_file, *stored], held, halves


def _parsed(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    return int(width), int(height)


def _sides(family: Family, denoiser: Mapping[str, Any], vae: Mapping[str, Any], largest_pixels: int) -> Sides:
    """A transformer that has learnt its positions has no more of them."""
    multiple = scale(vae) * patch(family, denoiser)
    positions = int(denoiser.get("pos_embed_max_size", MAX_SIDE))
    return Sides(max(MULTIPLE, multiple), min(MAX_SIDE, positions * multiple), largest_pixels)


def _check_wishes(header: DrawHeader, options: Mapping[str, Setting]) -> None:
    """That the model's table asks for nothing that its family lacks. Raises HeaderError."""
    if (why := scheduler_problem(header, str(options.get("image_scheduler", AUTO)))) is not None:
        raise HeaderError(f"image_scheduler: {why}")
    if header.quantization != "none" and version_of_package("bitsandbytes").endswith("-none"):
        raise HeaderError("quantization wants bitsandbytes, which is not installed. hint: pip install 'onecard[bnb]'")
    if header.ways.sliced is True and not can_slice(header):
        raise HeaderError("image_sliced is for U-Nets, and this folder has a transformer. hint: image_offload = 'auto'")
    guidance = options.get("image_guidance", AUTO)
    if guidance != AUTO and (why := guidance_problem(header, float(guidance))) is not None:
        raise HeaderError(f"image_guidance: {why}")


def _pipeline(index: Mapping[str, Any]) -> str:
    """Raises HeaderError for one that is not served."""
    name = index.get("_class_name")
    if isinstance(name, str) and name in FAMILIES:
        return name
    told = foreign.plain([str(name)[:60]])[0]
    raise HeaderError(
        f"model_index.json says {told}, and onecard draws with {', '.join(FAMILIES)}. "
        "hint: take a Stable Diffusion 1.x, 2.x, XL or 3, or a Flux.1, as diffusers has it"
    )


def _is_there(named: Any) -> bool:
    """Of a part in model_index.json: a library and a class, or twice null."""
    return isinstance(named, list) and any(one is not None for one in named)


def _scheduler(folder: Path, family: Family) -> tuple[str, bool]:
    """The folder's own, by our name, and whether it shifts by size. Raises HeaderError or FileError."""
    its_config = model_files.read_object(folder / "scheduler" / "scheduler_config.json")
    named = its_config.get("_class_name")
    found = next((name for name, its in family.schedulers.items() if its == named), None)
    if found is None:
        told = foreign.plain([str(named)[:60]])[0]
        raise HeaderError(f"the folder's scheduler is {told}, and onecard has {', '.join(family.schedulers.values())}")
    is_shifted = its_config.get("use_dynamic_shifting") is True
    if family.flow and found != "euler" and (is_shifted or family is FAMILIES["FluxPipeline"]):
        raise HeaderError(f"the folder's scheduler is {named}, which takes no times of its model's own. hint: {_EULER}")
    return found, is_shifted


def _stored(folder: Path, parts: Sequence[str]) -> tuple[list[StoredTensor], frozenset[str]]:
    """The tensors of all parts, `unet.` and so on before their names; which parts are halves. Raises FileError."""
    from dataclasses import replace

    found, halves = [], set()
    for part in parts:
        stem = TEXT_WEIGHTS if part.startswith("text_") else WEIGHTS
        half = f"{stem}.fp16"
        plain = any(model_files.is_there(folder / part / f"{stem}.safetensors{end}") for end in ("", ".index.json"))
        if not plain and model_files.is_there(folder / part / f"{half}.safetensors"):
            stem = half
            halves.add(part)
        try:
            stored, _ = tensors.read(folder / part, stem)
        except model_files.FileError as error:
            raise model_files.FileError(f"{part}: {error}") from None
        is_tied = any(tensor.name == "shared.weight" for tensor in stored)
        kept = [tensor for tensor in stored if not (is_tied and tensor.name == _TIED)]
        found += [replace(tensor, name=f"{part}.{tensor.name}") for tensor in kept]
    return found, frozenset(halves)
