"""How many nodes a cluster should have by what waits: a busy card is no slow one. Pure; delays are Ray Serve's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WAITING_PER_NODE: Final = 8
"""Requests in a node's queue from which on there are too few nodes."""
FULL: Final = 0.5
"""Share of the places of the nodes that are left, up to which their number may shrink by one."""


def nodes_wanted(waiting: Sequence[float], busy: Sequence[float], n_now: int) -> int:
    """The number of nodes. Of each node: the requests that wait, and the share of its places that are taken."""
    if not waiting:
        return n_now
    if total := sum(waiting):
        return max(n_now, math.ceil(total / WAITING_PER_NODE))
    return n_now - 1 if sum(busy) <= FULL * (n_now - 1) else n_now
