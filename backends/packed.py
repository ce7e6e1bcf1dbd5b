"""What matrices take that bitsandbytes has packed. Pure.

4 bits (`Linear4bit`): half a byte per value, one absmax per 64 of them (float32; with double quantisation one byte, and
a float32 per 256 of those), 16 values of code. 8 bits (`Linear8bitLt`): one byte per value and a float32 per row.
"""

from __future__ import annotations

import math
from typing import Final

_BLOCK: Final = 64
_NESTED_BLOCK: Final = 256
_CODE_BYTES: Final = 16 * 4
_NESTED_CODE_BYTES: Final = 256 * 4 + 4
_FLOAT_BYTES: Final = 4


def packed_bytes(n_values: int, *, double: bool) -> int:
    """A matrix of so many values in 4 bits; `double`: its absmax are packed, too."""
    n_blocks = math.ceil(n_values / _BLOCK)
    absmax = n_blocks * _FLOAT_BYTES
    if double:
        absmax = n_blocks + math.ceil(n_blocks / _NESTED_BLOCK) * _FLOAT_BYTES + _NESTED_CODE_BYTES
    return math.ceil(n_values / 2) + absmax + _CODE_BYTES


def int8_bytes(n_values: int, n_rows: int) -> int:
    """A matrix of so many values in 8 bits."""
    return n_values + n_rows * _FLOAT_BYTES
