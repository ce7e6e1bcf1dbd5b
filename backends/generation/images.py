"""Images on their way to an encoder, and the rows that encoders made of them, kept for the next turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from backends.engine import JobError
from backends.files import pictures
from backends.files.pictures import PictureError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from backends.generation.row_layout import Embedding
    from backends.messages import Medium

_LOW: Final = "low"


def size_of(medium: Medium) -> pictures.Size:
    """By the image's header, without its pixels. Raises JobError."""
    try:
        return pictures.size(medium.data, low=medium.detail == _LOW)
    except PictureError as error:
        raise JobError("unsupported_media", str(error), param="prompt") from None
    except MemoryError:
        raise JobError("out_of_memory", "finds no memory for its size to be read", param="prompt") from None


def pixels_of(medium: Medium) -> NDArray[np.uint8]:
    """`(height, width, 3) uint8` of the size that `size_of` tells. Raises JobError."""
    try:
        return pictures.pixels(medium.data, low=medium.detail == _LOW)
    except PictureError as error:
        raise JobError("unsupported_media", str(error), param="prompt") from None
    except MemoryError:
        raise JobError("out_of_memory", "needs more memory to be decoded than there is", param="prompt") from None


def digest_of(medium: Medium, salt: str) -> str:
    """What tells what an encoder is given from everything else that it is ever given."""
    return f"{medium.digest} {medium.detail == _LOW} {salt}"


class KeptRows:
    """Rows by what they were made of, the longest unused forgotten first; for any number of threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._turn = threading.Lock()
        self._kept: OrderedDict[str, Sequence[Embedding]] = OrderedDict()
        self._n_bytes = 0

    def find(self, digest: str) -> Sequence[Embedding] | None:
        """What was made of it before; None where that is not kept."""
        with self._turn:
            if digest in self._kept:
                self._kept.move_to_end(digest)
            return self._kept.get(digest)

    def keep(self, digest: str, made: Sequence[Embedding]) -> None:
        """Keep it as long as there is room."""
        with self._turn:
            if digest in self._kept:
                return
            self._kept[digest] = made
            self._n_bytes += sum(one.n_bytes for one in made)
            while self._n_bytes > self._most_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._n_bytes -= sum(one.n_bytes for one in oldest)
