"""The ways to load a model that draws, the fastest first: how many images at once, and what is done without memory.

Slices of the feed-forward layers cost a few per cent of a step, and networks that wait in host memory the time of
copying them, once an image. Both leave the image as it is, but for rounding. Tiles change it, so they come last.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from backends.diffusion.kind import TILE, DrawPlan
from backends.diffusion.precision import computed_in
from backends.diffusion.wishes import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from backends.backend import Setting
    from backends.diffusion.header import DrawHeader
    from backends.diffusion.kind import Offloaded
    from backends.plan import Wish

PARALLEL: Final = 4
"""Images at once where the operator says nothing."""
_FIRST: Final[tuple[Offloaded, ...]] = ("none", "text", "parts")
"""What is tried before fewer images at once."""
_LAST: Final[tuple[Offloaded, ...]] = ("all",)
_NOWHERE: Final[tuple[Offloaded, ...]] = ("none",)


@dataclass(frozen=True)
class Ways:
    """What the operator has chosen; None is left open."""

    offload: Offloaded | None = None
    sliced: bool | None = None
    tiled: bool | None = None


def chosen(options: Mapping[str, Setting]) -> Ways:
    """By the keys of the model's table."""
    found = {name: options.get(f"image_{name}", AUTO) for name in ("offload", "sliced", "tiled")}
    return Ways(**{name: value for name, value in found.items() if value != AUTO})  # type: ignore[arg-type]


def plans(header: DrawHeader, wish: Wish) -> Iterator[DrawPlan]:
    """All that are worth a try, each once. On a processor no network has another memory to wait in."""
    yield from dict.fromkeys(_ladder(header, wish))


def _ladder(header: DrawHeader, wish: Wish) -> Iterator[DrawPlan]:
    several = (PARALLEL, *fewer(PARALLEL)) if "parallel" in wish.open else (wish.parallel,)
    ways, on_card = header.ways, wish.device == "cuda"
    base = DrawPlan(
        1, device=wish.device, quantization=header.quantization, computed_in=computed_in(header, wish.device)
    )
    slices = [False, True] if ways.sliced is None and can_slice(header) else [ways.sliced is True]
    offloads = _offloads(ways) if on_card else _NOWHERE
    whole = [(offloads[0], sliced) for sliced in slices] + [(one, slices[-1]) for one in offloads[1:]]
    tiled = ways.tiled is True and can_tile(header)
    for parallel, (offload, sliced) in product(several, whole):
        yield replace(base, parallel=parallel, tiled=tiled, sliced=sliced, offload=offload)
    last = (*offloads, *_LAST) if on_card and ways.offload is None else offloads
    for tiles, offload in product([tiled] if ways.tiled is not None or not can_tile(header) else [False, True], last):
        yield replace(base, parallel=several[-1], tiled=tiles, sliced=slices[-1], offload=offload)


def _offloads(ways: Ways) -> tuple[Offloaded, ...]:
    return _FIRST if ways.offload is None else (ways.offload,)


def can_slice(header: DrawHeader) -> bool:
    """What slices save is known of U-Nets."""
    return header.family.denoiser == "unet"


def can_tile(header: DrawHeader) -> bool:
    """Whether the largest image is more than one tile."""
    return max(header.largest) > TILE


def fewer(parallel: int) -> Iterator[int]:
    """Images at once, by halves."""
    while parallel > 1:
        parallel //= 2
        yield parallel
