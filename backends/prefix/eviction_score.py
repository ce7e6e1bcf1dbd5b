"""The eviction score of a cache entry, and the name of its file, which tells the server enough to judge it. Pure."""

from __future__ import annotations

import re
from typing import Final

HALF_LIFE_S: Final = 600.0
"""After so long without a use the next one is half as likely."""
SUFFIX: Final = ".kv"
_NAME: Final = re.compile(rf"\d+-(\d{{1,18}}){re.escape(SUFFIX)}")


def eviction_score(cost_us: float, n_uses: int, idle_s: float, n_bytes: int) -> float:
    """Microseconds of computing saved per byte, as far as uses so far tell of uses to come."""
    likelihood: float = (1 + n_uses) * 0.5 ** (max(0.0, idle_s) / HALF_LIFE_S)
    return cost_us * likelihood / max(1, n_bytes)


def file_name(number: int, cost_us: float) -> str:
    """`00000001-250000.kv`: a number, and the microseconds of computing that the file saves."""
    return f"{number:08d}-{min(max(0, int(cost_us)), 10**18 - 1)}{SUFFIX}"


def cost_of(name: str) -> float:
    """The microseconds in a file's name; 0 for what is no finished file of ours."""
    found = _NAME.fullmatch(name)
    return float(found[1]) if found else 0.0
