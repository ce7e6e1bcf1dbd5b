"""A stranger's image as pixels: its header first, then as many pixels as are allowed, upright, on white. Pillow only.

PNG, JPEG, WebP, GIF (its first frame) and BMP. Embedded profiles, text and thumbnails are not looked at.
"""

from __future__ import annotations

import io
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_PIXELS: Final = 1 << 24
"""Of one image as it is decoded: 4096 x 4096."""
JPEG_PIXELS: Final = 4 * MOST_PIXELS
"""Of a JPEG, which is made smaller while it is decoded; a progressive one keeps all of it in memory."""
MOST_RATIO: Final = 200
"""Of its sides: no encoder makes anything of a line."""
KEPT_PIXELS: Final = 1 << 22
"""A larger image is made smaller before an encoder sees it; none uses more."""
LOW_SIDE: Final = 512
"""The longest side where a client asks for little detail, as OpenAI has it."""
_TURNED: Final = frozenset({5, 6, 7, 8})
_ORIENTATION: Final = 0x0112
_SIXTEEN_BITS: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_SMALLER: Final = "make it smaller"


class PictureError(Exception):
    """Bytes that are no image, or one too large; a clause that follows its name."""


class Size(NamedTuple):
    """Of an image as an encoder gets it."""

    width: int
    height: int


def size(data: bytes, *, low: bool = False) -> Size:
    """From its header alone. Raises PictureError."""
    with _reading(data) as image:
        return _kept(_upright(image), low=low)


def pixels(data: bytes, *, low: bool = False) -> NDArray[np.uint8]:
    """`(height, width, 3) uint8`, red first, of `size`. Raises PictureError."""
    with _reading(data) as image:
        wanted = _kept(_upright(image), low=low)
        turned = wanted[::-1] if _orientation(image) in _TURNED else wanted
        if image.format == "JPEG":
            image.draft(None, turned)
        if image.width * image.height > MOST_PIXELS:
            raise PictureError(_too_many(image.width, image.height))
        shown = _plain(image)
        if shown.size != tuple(turned):
            shown = shown.resize(turned, Image.Resampling.BICUBIC, reducing_gap=2.0)
        orientation = _orientation(image)
        if orientation in _WAYS:
            shown = shown.transpose(_WAYS[orientation])
        return np.asarray(shown, dtype=np.uint8)


_WAYS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def _reading(data: bytes) -> Iterator[Image.Image]:
    """The image with its header read; whatever its decoder says of it is a PictureError."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except (PictureError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise PictureError(f"has too many pixels; {MOST_PIXELS >> 20} million are allowed. hint: {_SMALLER}") from None
    except UnidentifiedImageError:
        raise PictureError(f"is no image that can be read. hint: send {', '.join(FORMATS[:-1])} or BMP") from None
    except Exception as error:  # decoders of strange bytes raise whatever happened to them
        told = " ".join(str(error).split())[:120] or type(error).__name__
        raise PictureError(f"is broken: {told}. hint: save it again, as PNG or JPEG") from None


def _upright(image: Image.Image) -> Size:
    """Width and height of the whole image, as it is to be looked at. Raises PictureError."""
    width, height = image.size
    shrinks = image.format == "JPEG" and not image.info.get("progressive")
    if width * height > (JPEG_PIXELS if shrinks else MOST_PIXELS):
        raise PictureError(_too_many(width, height))
    if max(width, height) > MOST_RATIO * min(width, height):
        raise PictureError(
            f"has {width} x {height} pixels, and one side may be at most {MOST_RATIO} times the other. "
            "hint: cut it into pieces"
        )
    return Size(height, width) if _orientation(image) in _TURNED else Size(width, height)


def _orientation(image: Image.Image) -> int | None:
    """As a camera held it; a PNG says it before its pixels, or is not heard: Pillow would decode all of them for it."""
    found: int | None = Image.Image.getexif(image).get(_ORIENTATION)
    return found


def _too_many(width: int, height: int) -> str:
    return f"has {width} x {height} pixels, and {MOST_PIXELS >> 20} million are allowed. hint: {_SMALLER}"


def _kept(whole: Size, *, low: bool) -> Size:
    """What an encoder gets of an image of this size."""
    scale = min(1.0, math.sqrt(KEPT_PIXELS / (whole.width * whole.height)))
    if low:
        scale = min(scale, LOW_SIDE / max(whole))
    return whole if scale == 1.0 else Size(*(max(1, int(side * scale)) for side in whole))


def _plain(image: Image.Image) -> Image.Image:
    """Eight bits of red, green and blue, what is transparent on white."""
    if image.mode in _SIXTEEN_BITS:
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("P", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA")
    if "A" not in image.mode:
        return image.convert("RGB")
    ground = Image.new("RGB", image.size, "white")
    ground.paste(image.convert("RGB") if image.mode == "LA" else image, mask=image.getchannel("A"))
    return ground


def transparent(data: bytes) -> NDArray[np.bool_] | None:
    """`(height, width) bool` of `size`: where nothing of an image is seen; None: all is. Raises PictureError."""
    with _reading(data) as image:
        wanted = _kept(_upright(image), low=False)
        if "A" not in image.getbands() and "transparency" not in image.info:
            return None
        if image.width * image.height > MOST_PIXELS:
            raise PictureError(_too_many(image.width, image.height))
        alpha = (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")
        orientation = _orientation(image)
        if orientation in _WAYS:
            alpha = alpha.transpose(_WAYS[orientation])
        if alpha.size != tuple(wanted):
            alpha = alpha.resize(wanted, Image.Resampling.NEAREST)
        found: NDArray[np.bool_] = np.asarray(alpha) == 0
        return found
