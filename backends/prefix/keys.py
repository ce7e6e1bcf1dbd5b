"""What a cached prefix is found by: one number per KV cell. Pure.

A cell of text has its token's id. A cell of an image or a sound has a negative number made of the medium's digest and
the cell's offset in it, never a placeholder's id: two pictures behind equal placeholders share nothing.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Keys = NDArray[np.int64]
    """`(n_cells,) int64`."""

_BITS: Final = 2**63 - 1


def text_keys(tokens: NDArray[np.int32]) -> Keys:
    """Of cells that hold tokens."""
    return tokens.astype(np.int64)


def media_keys(digest: str, n_rows: int) -> Keys:
    """Of the cells of one medium; `digest` is the SHA-256, in hex, of what its encoder is given."""
    drawn = np.frombuffer(hashlib.shake_128(bytes.fromhex(digest)).digest(8 * n_rows), "<i8")
    return -1 - (drawn.astype(np.int64) & _BITS)
