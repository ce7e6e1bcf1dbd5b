"""The images that others are drawn from: a client's files as pixels of the wanted size, and what of them may change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backends.diffusion.kind import FILE_BYTES, SMALLEST_SIDE, Sides, size_problem
from backends.engine import JobError
from backends.files import model_files, pictures

if TYPE_CHECKING:
    from backends.diffusion.kind import Draw
    from backends.messages import SpoolFile

_NO_HOLE: Final = (
    "the mask has no transparent pixel, so nothing of the image may change. "
    "hint: a PNG that is transparent where the image is to be drawn anew"
)


@dataclass(frozen=True)
class Source:
    """What an image is drawn from."""

    pixels: NDArray[np.uint8]
    """`(height, width, 3) uint8` of the wanted size."""
    open: NDArray[np.bool_] | None
    """`(height, width) bool`: what of it may change; None: all."""


def read(job: Draw, sides: Sides) -> Source | None:
    """The job's image and mask; None where it has none. Raises JobError for files that are no such thing."""
    if job.image is None:
        return None
    shown, hole = _image(job.image, with_hole=not job.whole and job.mask is None)
    if job.mask is not None:
        hole = _hole(_data(job.mask, "mask"), "mask")
        if hole is None or not hole.any():
            raise JobError("invalid_value", _NO_HOLE, param="mask")
        if hole.shape != shown.shape[:2]:
            told = (
                f"the mask has {_told(hole.shape)} pixels and the image {_told(shown.shape)}. hint: one size for both"
            )
            raise JobError("invalid_value", told, param="mask")
    if hole is not None and not hole.any():
        hole = None
    width, height = (job.width, job.height) if job.width else _near(shown, sides)
    if (why := size_problem(width, height, sides)) is not None:
        raise JobError("invalid_value", why, param="size")
    return Source(_resized(shown, width, height), None if hole is None else _resized_hole(hole, width, height))


def _near(shown: NDArray[np.uint8], limits: Sides) -> tuple[int, int]:
    """Width and height of an answer whose size was not asked for: the image's own, no larger than there may be."""
    height, width = shown.shape[:2]
    multiple, longest, largest_pixels = limits
    scale = min(1.0, (largest_pixels / (width * height)) ** 0.5, longest / max(width, height))
    sides = (max(SMALLEST_SIDE, int(side * scale) // multiple * multiple) for side in (width, height))
    return next(sides), next(sides)


def _data(file: SpoolFile, param: str) -> bytes:
    try:
        return model_files.read_bytes(Path(file.path), FILE_BYTES)
    except model_files.FileError as error:
        raise JobError("invalid_value", str(error), param=param) from None


def _image(file: SpoolFile, *, with_hole: bool) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Its pixels, and where it is transparent; its bytes are let go of behind that."""
    data = _data(file, "image")
    return _pixels(data, "image"), _hole(data, "image") if with_hole else None


def _pixels(data: bytes, param: str) -> NDArray[np.uint8]:
    try:
        return pictures.pixels(data)
    except pictures.PictureError as error:
        raise JobError("unsupported_media", f"the {param} {error}", param=param) from None


def _hole(data: bytes, param: str) -> NDArray[np.bool_] | None:
    try:
        return pictures.transparent(data)
    except pictures.PictureError as error:
        raise JobError("unsupported_media", f"the {param} {error}", param=param) from None


def _resized(shown: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if shown.shape[:2] == (height, width):
        return shown
    return np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.LANCZOS), dtype=np.uint8)


def _resized_hole(hole: NDArray[np.bool_], width: int, height: int) -> NDArray[np.bool_]:
    resized = Image.fromarray(hole.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
    found: NDArray[np.bool_] = np.asarray(resized) > 127
    return found


def _told(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
