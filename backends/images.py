"""What images and sounds may take, whichever backend computes them: tokens, seconds, host memory. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

IMAGE_MAX_TOKENS: Final = 1024
"""Rows of one image where the operator does not say: of models that see in many sizes."""
MAX_AUDIO_S: Final = 120.0
"""Seconds of one sound in a prompt where the operator does not say."""
MOST_AUDIO_S: Final = 3600.0
"""What the operator may say."""
KEPT_IMAGES: Final = 8
"""So many of the largest are kept as rows, so that the same image or sound in the next turn is not encoded again."""
MOST_KEPT_BYTES: Final = 128 << 20
ON_ITS_WAY_BYTES: Final = 192 << 20
"""Host memory of one image from its bytes to the encoder's input; see `backends.files.pictures`."""
SOUND_BYTES_PER_S: Final = 400_000
"""The same of each second of a sound: samples as they are decoded and as floats, padded, and their spectrogram."""
_FLOAT_BYTES: Final = 4


def image_max_tokens(options: Mapping[str, object]) -> int:
    """Rows of one image at most, as the operator says or as it is otherwise."""
    asked = options.get("image_max_tokens", IMAGE_MAX_TOKENS)
    return asked if isinstance(asked, int) else IMAGE_MAX_TOKENS


def max_audio_s(options: Mapping[str, object]) -> float:
    """Seconds of one sound at most, as the operator says or as it is otherwise."""
    asked = options.get("max_audio_s", MAX_AUDIO_S)
    return float(asked) if isinstance(asked, int | float) else MAX_AUDIO_S


def kept_bytes(n_rows: int, width: int) -> int:
    """Host memory of rows that were made and are kept, where the largest medium has `n_rows` of `width` floats."""
    return min(MOST_KEPT_BYTES, KEPT_IMAGES * n_rows * width * _FLOAT_BYTES)
