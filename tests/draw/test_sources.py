"""Images to draw from that mean no good or are odd: each is read upright or refused by name, in bounded memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backends.diffusion.arithmetic import UPLOAD_BYTES
from backends.diffusion.kind import FILE_BYTES, Draw, Sides
from backends.diffusion.sources import Source, read
from backends.engine import JobError
from backends.messages import SpoolFile
from tests.http.conftest import Server
from tests.seeing.hostile import encoded, png, refused

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = 0x0112
WIDE, LARGEST = (96, 64), 1 << 20


def half(left: Any, right: Any, mode: str = "RGB") -> Image.Image:
    """The left half of one colour, the right one of another."""
    image = Image.new(mode, WIDE, left)
    image.paste(right, (WIDE[0] // 2, 0, *WIDE))
    return image


def turned(image: Image.Image, kind: str, orientation: int) -> bytes:
    """With a camera's word for how it was held."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(image, kind, exif=exif)


def spooled(folder: Path, data: bytes) -> SpoolFile:
    path = folder / f"{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    return SpoolFile(path=str(path), n_bytes=len(data), digest="")


def source(folder: Path, image: bytes, mask: bytes | None = None, **fields: Any) -> Source:
    job = Draw("a", "red", 0, 0, seed=0, image=spooled(folder, image), **fields)
    if mask is not None:
        job = Draw("a", "red", 0, 0, seed=0, image=job.image, mask=spooled(folder, mask), **fields)
    found = read(job, Sides(largest_pixels=LARGEST))
    assert found is not None
    return found


RED, BLUE = (255, 0, 0), (0, 0, 255)
CYAN_PLATE, YELLOW_PLATE = (255, 0, 0, 0), (0, 0, 255, 0)
ODD: dict[str, tuple[Callable[[], bytes], tuple[int, int, int]]] = {
    "16 bits": (lambda: encoded(Image.fromarray(np.full((64, 96), 40_000, np.uint16)), "PNG"), (156, 156, 156)),
    "CMYK": (lambda: encoded(half(CYAN_PLATE, YELLOW_PLATE, "CMYK"), "JPEG", quality=95), (0, 255, 255)),
    "animated": (lambda: encoded(half(RED, BLUE), "GIF", save_all=True, append_images=[half(BLUE, RED)]), RED),
    "animated webp": (
        lambda: encoded(half(RED, BLUE), "WEBP", lossless=True, save_all=True, append_images=[half(BLUE, RED)]),
        RED,
    ),
    "one bit": (lambda: encoded(half(1, 0, "1"), "PNG"), (255, 255, 255)),
    "a palette": (lambda: encoded(half(RED, BLUE).convert("P"), "PNG"), RED),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_images_are_read(case: str, tmp_path: Path) -> None:
    """Given an image of a rare kind, then its left half has its colour; of an animated one the first frame's."""
    write, colour = ODD[case]
    found = source(tmp_path, write())
    assert found.pixels.shape == (64, 96, 3)
    assert found.open is None
    assert np.abs(found.pixels[32, 16].astype(int) - colour).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_cameras_turn_images_and_their_holes(kind: str, tmp_path: Path) -> None:
    """Given an image that was held on its side, transparent on its left, then both are upright."""
    clear = kind != "JPEG"
    image = half((*RED, 0), (*BLUE, 255), "RGBA") if clear else half(RED, BLUE)
    found = source(tmp_path, turned(image, kind, 6))
    assert found.pixels.shape == (96, 64, 3)
    assert np.abs(found.pixels[80, 32].astype(int) - BLUE).max() <= 3
    if clear:
        assert found.open is not None
        assert (found.open[:48].all(), found.open[48:].any()) == (True, False)


def test_a_mask_is_turned_as_its_image(tmp_path: Path) -> None:
    mask = half((0, 0, 0, 0), (0, 0, 0, 255), "RGBA")
    upright = encoded(half(RED, BLUE).transpose(Image.Transpose.ROTATE_270), "PNG")
    found = source(tmp_path, upright, turned(mask, "PNG", 6))
    assert found.open is not None
    assert (found.open[:48].all(), found.open[48:].any()) == (True, False)
    with pytest.raises(JobError, match="the mask has 96 x 64 pixels and the image 64 x 96"):
        source(tmp_path, upright, encoded(mask, "PNG"))


def test_a_phone_s_jpeg_is_made_smaller(tmp_path: Path) -> None:
    """Given a photograph of 48 million pixels, then it is read; one with holes may have 16 million."""
    found = source(tmp_path, encoded(Image.new("RGB", (8000, 6000), RED), "JPEG", quality=5))
    assert found.pixels.shape[0] * found.pixels.shape[1] <= LARGEST
    with pytest.raises(JobError, match="the image has 4200 x 4000 pixels, and 16 million are allowed"):
        source(tmp_path, encoded(Image.new("LA", (4200, 4000)), "PNG"))


REFUSED = {
    **{name: data for name, data in refused() if name in ("bomb that lies of its rows", "line", "svg", "tiff")},
    "a cut png": encoded(half(RED, BLUE), "PNG")[:-60],
    "a cut jpeg": encoded(half(RED, BLUE), "JPEG")[:200],
    "a bomb": png(16_000, 16_000, b"\0" * (16_000 * 2001), depth=1, colour=0),
    "too many bytes": b"\x89PNG" + bytes(FILE_BYTES),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("param", ["image", "mask"])
def test_hostile_images_are_refused_by_name(name: str, param: str, tmp_path: Path) -> None:
    sound = encoded(half(RED, BLUE), "PNG")
    with pytest.raises(JobError) as refusal:
        source(tmp_path, REFUSED[name], None) if param == "image" else source(tmp_path, sound, REFUSED[name])
    assert refusal.value.param == param
    assert refusal.value.code in ("unsupported_media", "invalid_value")


def test_memory_is_what_is_reserved_for_an_upload(tmp_path: Path) -> None:
    """Given the largest images that are allowed, with masks as large, then reading takes what a footprint counts."""
    gives_back = {"MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**16), "MALLOC_ARENA_MAX": "1"}
    told = subprocess.run(
        [sys.executable, "-m", "tests.draw.upload_memory", str(tmp_path)],
        cwd=ROOT, env={**os.environ, **gives_back}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    peaks = json.loads(told.stdout.splitlines()[-1])
    assert 0.9 * UPLOAD_BYTES < max(peaks) << 10 < UPLOAD_BYTES


@pytest.mark.engine
@pytest.mark.parametrize("case", ODD)
def test_odd_images_are_drawn_from(case: str, server: Server) -> None:
    from tests.draw.test_edits import EDITS, sent

    fields = {"prompt": "red", "strength": "1", "steps": "1"}
    answer = sent(server, EDITS, fields, image=ODD[case][0]())
    assert (answer.status, answer.status == 200 and answer.json()["size"]) == (200, "96x64"), answer.body
