"""Sounds on their way to an encoder: a stranger's file as samples, bounded in seconds before it is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from backends.engine import JobError
from backends.files.recordings import Recording, RecordingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from backends.messages import Medium

_LOUDEST: Final = 32768.0


def samples_of(medium: Medium, *, rate: int, max_s: float) -> NDArray[np.float32]:
    """`(n_samples,) float32` between -1 and 1, one channel of `rate` a second. Raises JobError."""
    try:
        recording = Recording(medium.data, max_s=max_s, rate=rate)
        try:
            heard = np.concatenate(list(recording.pieces()))
        finally:
            recording.close()
    except RecordingError as error:
        told = "cannot be heard" if error.code == "unsupported_media" else "is refused"
        raise JobError(error.code, f"{told}: {error}", param="prompt") from None
    except MemoryError:
        raise JobError("out_of_memory", "needs more memory to be decoded than there is", param="prompt") from None
    return heard.astype(np.float32) / np.float32(_LOUDEST)
