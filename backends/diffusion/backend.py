"""Diffusers' folders of models that draw, as `backends.backend.Backend` asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backends.backend import Files, version_of_package
from backends.diffusion import arithmetic
from backends.diffusion.adapter_files import described
from backends.diffusion.header import INDEX, DrawHeader, read
from backends.diffusion.kind import DRAW, WAITING, DrawPlan
from backends.diffusion.plans import can_slice, can_tile, fewer, plans
from backends.diffusion.single_file import is_single
from backends.files import adapters, model_files
from backends.kinds import AnyKind
from backends.messages import Figure
from backends.plan import Amount, Footprint, Wish

if TYPE_CHECKING:
    from backends.backend import Setting
    from backends.choices import Choices
    from backends.diffusion.kind import Quantization
    from backends.messages import MediaKind
    from backends.options import Options
    from backends.speed import Speeds


_SMALLER: Mapping[Quantization, Sequence[Quantization]] = MappingProxyType(
    {"none": ("bnb-8bit", "bnb-4bit"), "bnb-8bit": ("bnb-4bit",), "bnb-4bit": ()}
)


_NEEDED = ("diffusers", "torch")


class DrawChoices:
    """See `backends.choices.Choices`: how many images at once, and how memory is spared."""

    def figures(self, _header: DrawHeader, plan: DrawPlan) -> Mapping[str, Figure]:
        """For `/v1/capacity`."""
        return {
            "parallel": plan.parallel,
            "image_sliced": plan.sliced,
            "image_offload": plan.offload,
            "image_tiled": plan.tiled,
            "precision": plan.precision,
        }

    def others(
        self,
        header: DrawHeader,
        plan: DrawPlan,
        room: Amount,
        footprint_of: Callable[[DrawPlan], Footprint],
        *,
        fits: bool,
    ) -> Sequence[DrawPlan]:
        """In slices, from host memory, fewer images, then in tiles; one that fits `fits` as it is."""
        found = [replace(plan, sliced=True)] if can_slice(header) and not plan.sliced else []
        found += [replace(plan, offload=one) for one in WAITING if plan.device == "cuda" and one != plan.offload]
        found += [replace(plan, parallel=n) for n in fewer(plan.parallel)]
        found += [replace(plan, tiled=True)] if can_tile(header) and not plan.tiled else []
        return [] if fits else [other for other in found if footprint_of(other).amount.within(room)]

    def instead(self, plan: DrawPlan, room: Amount, footprint_of: Callable[[DrawPlan], Footprint]) -> Sequence[str]:
        """What to configure."""
        if footprint_of(replace(plan, parallel=1)).amount.within(room):
            return ["parallel 1"]
        smaller = (replace(plan, quantization=one) for one in _SMALLER[plan.quantization])
        found = next((one for one in smaller if footprint_of(one).amount.within(room)), None)
        return [f"quantization {found.quantization}"] if found else []


class Drawings:
    """See `backends.backend.Backend`."""

    name = "diffusion"
    files = "a diffusers folder of a model that draws"
    kinds: Sequence[AnyKind] = (DRAW,)
    engine = "backends.diffusion.loading:load"
    extra = "images"
    routes: Sequence[str] = ("backends.diffusion.route",)
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "context": "whose text encoder reads as much as it was made for",
            "kv_type": "which has no KV cache",
            "kv_offload": "which has no KV cache",
            "kv_tokens": "which has no KV cache",
            "gpu_layers": "whose layers are all on one device",
            "sampling": "whose requests say how they are drawn",
        }
    )
    packages: Sequence[str] = ("diffusers", "transformers", "bitsandbytes", "torch")
    components: Sequence[str] = (adapters.KEY,)
    media: Sequence[MediaKind] = ()
    choices: Choices[DrawHeader, DrawPlan] = DrawChoices()
    speeds: Speeds[DrawHeader, DrawPlan] | None = None

    def options(self) -> type[Options]:
        """Its own keys."""
        from backends.diffusion.options import DrawOptions

        return DrawOptions

    def recognise(self, path: Path) -> Files | None:
        """A folder with model_index.json, whatever pipeline that names; a file with all of a model, or its denoiser."""
        if path.is_file():
            return Files((path,)) if is_single(path) else None
        index = path / INDEX
        if not path.is_dir() or model_files.why_not_file(index) is not None or not index.is_file():
            return None
        return Files(tuple(sorted(file for file in path.glob("*/*.safetensors") if file.is_file())), (index,))

    def claims(self, reference: str) -> bool:
        """Such as `stabilityai/stable-diffusion-xl-base-1.0`."""
        name = Path(reference).name.lower()
        return any(word in name for word in ("stable-diffusion", "sdxl", "flux.1"))

    def describe(self, path: Path, options: Mapping[str, Setting]) -> DrawHeader:
        """model_index.json, the networks' configurations and the weights' headers; see `single_file` for a file."""
        header = read(path, options)
        taught = described(header.tensors, header.layers_per_block, options)
        return dataclasses.replace(header, adapters=taught, remarks=(*_lacking(), *adapters.remarks(taught)))

    def plans(self, header: DrawHeader, wish: Wish) -> Iterator[DrawPlan]:
        """As many images as were asked for, where nothing was, fewer where memory is short."""
        return plans(header, wish)

    def longest_context(self, _header: DrawHeader, _context: int | None) -> int | None:
        """A prompt has as many tokens as its encoder reads."""
        return None

    def estimate(self, header: DrawHeader, plan: DrawPlan) -> Footprint:
        """See `backends.diffusion.arithmetic`."""
        return arithmetic.predict(header, plan)

    def card_share(self, _header: DrawHeader, plan: DrawPlan) -> float:
        """All of it or nothing."""
        return 1.0 if plan.device == "cuda" else 0.0

    def runtime_bytes(self, _header: DrawHeader, plan: DrawPlan) -> Amount:
        """Python with PyTorch, transformers and diffusers."""
        return arithmetic.RUNTIME_BYTES[plan.device]


def _lacking() -> Sequence[str]:
    """What is told of a model that no worker here can load."""
    lacks = [package for package in _NEEDED if version_of_package(package).endswith("-none")]
    if not lacks:
        return ()
    return (f"it cannot be loaded: {' and '.join(lacks)} missing. hint: pip install 'onecard[{Drawings.extra}]'",)
