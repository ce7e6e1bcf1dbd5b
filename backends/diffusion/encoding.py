"""Pixels as a file of the wanted format, by Pillow; nothing but the image is in it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backends.diffusion.kind import ImageFormat


def encoded(pixels: NDArray[np.uint8], form: ImageFormat, quality: int) -> bytes:
    """A file of `(height, width, 3) uint8`; `quality` is of jpeg and webp, 0..100."""
    options: dict[str, Any] = {} if form == "png" else {"quality": quality}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()
