"""From a `LoadModel` message to a running engine over diffusers' networks, with its `Ready`'s figures."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from backends.backend import HeaderError
from backends.diffusion import adapter_files, arithmetic
from backends.diffusion.adapted import ImageAdapters
from backends.diffusion.denoising import failing
from backends.diffusion.engine import Defaults, DrawEngine
from backends.diffusion.families import ENCODER_CLASSES
from backends.diffusion.header import INDEX, DrawHeader, read
from backends.diffusion.kind import SMALLEST_SIDE, TILE, DrawFacts, DrawPlan
from backends.diffusion.library import AutoencoderKL, be_quiet, of_diffusers, of_transformers
from backends.diffusion.offload import Offload
from backends.diffusion.painter import Condition, Encoder, Painter, Row
from backends.diffusion.precision import computed_in, packed_parts
from backends.diffusion.reading import Target, read_network
from backends.diffusion.single_file import Places, places
from backends.diffusion.slicing import in_slices
from backends.diffusion.transformers import FluxPainter, JointPainter
from backends.diffusion.unet import UNetPainter
from backends.diffusion.wishes import AUTO, failing_problem
from backends.engine import LoadError
from backends.files import foreign, model_files
from backends.files.adapters import KEY, AdapterError, configured
from backends.generation.adapters import NO_NUMBERS
from backends.machine import card
from backends.machine.crash_reason import in_words
from backends.machine.kernel import forget_peak, peak_bytes, resident_bytes, share_few_arenas
from backends.messages import LoadModel, Ready
from backends.pytorch import shortage
from backends.pytorch.measure import runtime_bytes, weight_bytes

if TYPE_CHECKING:
    from backends.diffusion.kind import Quantization
    from backends.messages import Device

_ARENAS: Final = 2
"""Of the C library's; large blocks then come from the system and go back to it, and the peak is what lives at once."""
_TOY_BYTES: Final = 32 << 20
_PAINTERS: Final[Mapping[str, type[Painter]]] = {
    "StableDiffusionPipeline": UNetPainter,
    "StableDiffusionXLPipeline": UNetPainter,
    "StableDiffusion3Pipeline": JointPainter,
    "FluxPipeline": FluxPainter,
}


def load(spec: LoadModel[DrawPlan], progress: Callable[[float], None]) -> DrawEngine:
    """Load the folder as `spec` says. Raises LoadError."""
    plan, path = spec.plan, Path(spec.path)
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise LoadError("this build of PyTorch sees no GPU. hint: install one with CUDA, or use device = 'cpu'")
    free_before = card.free_bytes() if plan.device == "cuda" else None
    share_few_arenas(_ARENAS)
    be_quiet()
    try:
        where, before = places(path, spec.options), model_files.statuses_of([path])
        header = read(path, spec.options)
        torch.set_num_threads(spec.threads or _threads(sum(arithmetic.weight_bytes(header, plan).values())))
        networks = _networks(header, where, plan, progress)
        if where.file is not None and model_files.statuses_of([path]) != before:
            raise LoadError(f"{path.name} was changed while it was loaded. hint: try it again when it is whole")
        waiting = arithmetic.waiting_parts(header, plan)
        Offload(dict(networks.items()), waiting, header.family.denoiser, plan.device)
        adapters = ImageAdapters(dict(networks.items()), plan.device)
        painter = _painter(header, where.folder, networks, plan, adapters)
    except (HeaderError, model_files.FileError) as error:
        raise LoadError(str(error)) from None
    adapted = _adapted(adapters, painter, header, spec)
    compute = _tried(painter, header, plan, next((name for name, why in adapted.items() if not why), ""))
    progress(1.0)
    defaults = _defaults(header, spec, painter.scheduler_config)
    facts = _facts(header, plan, defaults, adapted)
    bytes_of = {"compute": compute, **({KEY: adapters.n_bytes} if adapters.n_bytes else {})}
    ready = _ready(header, plan, facts, networks, bytes_of, free_before=free_before)
    return DrawEngine(painter, defaults, header, ready)


def _threads(n_bytes: int) -> int:
    """Every core for real models, one for toys, where threads cost more than they compute."""
    return 1 if n_bytes < _TOY_BYTES else len(os.sched_getaffinity(0))


def _networks(
    header: DrawHeader, where: Places, plan: DrawPlan, progress: Callable[[float], None]
) -> torch.nn.ModuleDict:
    """All networks by the names of their folders, evaluating, on their device. Raises LoadError."""
    family = header.family
    wanted: dict[str, Any] = {
        name: of_transformers(ENCODER_CLASSES[kind]) for name, kind in header.text_encoders.items()
    }
    wanted |= {family.denoiser: of_diffusers(family.denoiser_class), "vae": AutoencoderKL}
    computed: torch.dtype = getattr(torch, computed_in(header, plan.device))
    found = torch.nn.ModuleDict()
    for number, (name, kind) in enumerate(wanted.items()):
        full = name == "vae" and arithmetic.decoder_value_bytes(header, plan.device) == 4
        dtype = torch.float32 if full else computed
        place: Device = "cpu" if name in arithmetic.waiting_parts(header, plan) else plan.device
        packed: Quantization = plan.quantization if name in packed_parts(header) else "none"
        found[name] = read_network(kind, name, where, header, Target(dtype, packed, place, plan.device))
        progress((number + 1) / (len(wanted) + 2))
    if plan.sliced:
        in_slices(found[family.denoiser])
    if plan.tiled:
        decode_in_tiles(found["vae"], header.scale)
    return found


def decode_in_tiles(vae: Any, scale: int) -> None:
    """Of `TILE` pixels, a quarter of which overlaps; diffusers' own are as large as the model's images."""
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // scale


def _painter(
    header: DrawHeader, path: Path, networks: torch.nn.ModuleDict, plan: DrawPlan, adapters: ImageAdapters
) -> Painter:
    """Raises LoadError or FileError."""
    index = model_files.read_object(path / INDEX)
    encoders = [_encoder(path, name, networks[name], header) for name in header.text_encoders]
    return _PAINTERS[header.pipeline](
        header=header,
        networks=dict(networks.items()),
        encoders=encoders,
        scheduler_config=model_files.read_object(path / "scheduler" / "scheduler_config.json") | dict(header.trained),
        device=plan.device,
        empty_is_zero=index.get("force_zeros_for_empty_prompt", True) is True,
        adapters=adapters,
    )


def _adapted(
    adapters: ImageAdapters, painter: Painter, header: DrawHeader, spec: LoadModel[DrawPlan]
) -> dict[str, str]:
    """Every adapter that `spec` names, and why it is not served; those that are can be drawn with. Raises LoadError."""
    shapes, found = adapter_files.shapes_of(header.tensors), {}
    for name, path in configured(spec.options).items():
        try:
            pairs = adapter_files.checked(path, shapes, header.layers_per_block)
            adapters.add(name, adapter_files.file_of(path), pairs)
            _try(painter, header, (SMALLEST_SIDE, SMALLEST_SIDE), 1, name)
        except (AdapterError, ValueError) as problem:
            adapters.drop(name)
            told = str(problem) if isinstance(problem, AdapterError) else NO_NUMBERS
            found[name] = foreign.plain([told])[0]
        except (RuntimeError, MemoryError) as error:
            if not shortage.is_shortage(error):
                raise
            told = f"no memory is left for its adapters: {shortage.told(error)}. hint: fewer adapters"
            raise LoadError(told, out_of_memory=True) from error
        else:
            found[name] = ""
    return found


def _encoder(path: Path, name: str, network: Any, header: DrawHeader) -> Encoder:
    """Raises LoadError: a tokenizer without words is told nowhere else."""
    folder, is_t5 = path / name.replace("text_encoder", "tokenizer"), header.text_encoders[name] == "t5"
    try:
        kind = of_transformers("T5TokenizerFast" if is_t5 else "CLIPTokenizer")
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
        ids = tokenizer("a picture").input_ids
    except Exception as error:  # the parser of strangers' files raises whatever it likes
        raise LoadError(f"{folder.name} cannot be read: {in_words(error)}") from None
    inside = [one for one in ids if one not in tokenizer.all_special_ids]
    if not inside or max(ids) >= network.config.vocab_size:
        raise LoadError(f"{folder.name} and {name} do not fit together. hint: was the folder downloaded completely?")
    reads = header.most_tokens if is_t5 else network.config.max_position_embeddings
    return Encoder(network, tokenizer, min(int(tokenizer.model_max_length), int(reads)), reads_all=is_t5)


def _tried(painter: Painter, header: DrawHeader, plan: DrawPlan, adapter: str) -> int:
    """A step of as many images as there may be, and the largest decoded: what that takes. Raises LoadError."""
    on_card = plan.device == "cuda"
    try:
        _try(painter, header, (SMALLEST_SIDE, SMALLEST_SIDE), 1)  # what libraries keep of their first image is theirs
        is_told = forget_peak()
        if on_card:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if on_card else resident_bytes()
        _try(painter, header, header.largest, arithmetic.rows_at_once(plan), adapter)
    except (RuntimeError, MemoryError, ValueError, TypeError, IndexError) as error:
        if shortage.is_shortage(error):
            told = f"no memory is left for an image: {shortage.told(error)}. hint: a smaller parallel or image_size"
            raise LoadError(told, out_of_memory=True) from error
        raise LoadError(f"the folder loads, but its first image fails: {in_words(error)}") from error
    if on_card:
        return int(torch.cuda.max_memory_allocated()) - before
    if not is_told:
        return arithmetic.predict(header, plan).host.compute
    return max(0, peak_bytes() - before)


def _try(painter: Painter, header: DrawHeader, size: tuple[int, int], n_rows: int, adapter: str = "") -> None:
    """Raises ValueError where no numbers come out."""
    width, height = size
    told = painter.condition(painter.read("a picture", "prompt"), adapter=adapter)
    chance = torch.Generator().manual_seed(0)
    latents = painter.first_latents(height // header.scale, width // header.scale, chance)
    row = Row(latents, torch.tensor(500), Condition(told.context, told.pooled), adapter=adapter)
    noise = painter.noise([row] * n_rows, (height, width))[0]
    if not bool(torch.isfinite(noise).all()):
        raise ValueError("the network gives no numbers")
    painter.pixels(latents)


def _defaults(header: DrawHeader, spec: LoadModel[DrawPlan], scheduler_config: dict[str, Any]) -> Defaults:
    """Raises LoadError where the scheduler that requests get cannot compute."""
    scheduler, steps, guidance = (spec.options.get(f"image_{key}", AUTO) for key in ("scheduler", "steps", "guidance"))
    own_steps = header.own_steps if steps == AUTO else int(steps)
    name = header.scheduler if scheduler == AUTO else str(scheduler)
    found = failing(header, scheduler_config)
    if (why := failing_problem(found, name)) is not None:
        raise LoadError(f"the scheduler {why}")
    own_guidance = header.own_guidance if guidance == AUTO else float(guidance)
    return Defaults(own_steps, own_guidance, name, found)


def _facts(header: DrawHeader, plan: DrawPlan, defaults: Defaults, adapted: dict[str, str]) -> DrawFacts:
    size, largest = ("x".join(map(str, sides)) for sides in (header.size, header.largest))
    return DrawFacts(size, largest, defaults.steps, defaults.scheduler, plan.precision, adapted)


def _ready(
    header: DrawHeader,
    plan: DrawPlan,
    facts: DrawFacts,
    networks: torch.nn.ModuleDict,
    parts: dict[str, int],
    *,
    free_before: int | None,
) -> Ready[DrawFacts]:
    """With what this process takes when all its images are on their way; `parts` are bytes where it computes."""
    images, parts, host = arithmetic.image_bytes(header, plan), {"weights": weight_bytes(networks), **parts}, {}
    free_after = card.free_bytes() if plan.device == "cuda" else None
    if plan.device == "cpu":
        beside = parts.get(KEY, 0)
        parts = {**parts, "compute": parts["compute"] + images, "runtime": runtime_bytes(networks, beside=beside)}
    elif free_before is not None and free_after is not None:
        waits = torch.nn.ModuleDict({name: networks[name] for name in arithmetic.waiting_parts(header, plan)})
        parts["weights"] -= weight_bytes(waits)
        parts["runtime"] = max(0, free_before - free_after - sum(parts.values()))
        host = {"runtime": runtime_bytes(waits, beside=0), "weights": weight_bytes(waits), "compute": images}
    return Ready(
        facts,
        plan.parallel,
        measured_bytes=sum(parts.values()),
        parts=parts,
        host_parts=host,
        capabilities=header.capabilities,
        engine=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("diffusers", "torch")),
    )
