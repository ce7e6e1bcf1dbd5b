"""How many nodes a cluster has by what waits: a busy card is no slow one, so that only waiting requests count. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

WAITING_PER_NODE: Final = 8
"""Requests in a node's queue from which on there are too few nodes."""
IDLE_S: Final = 600.0
"""Without a waiting request, until there is one node less."""


def nodes_wanted(
    waiting: Sequence[float], n_now: int, *, idle_since: float | None, now: float
) -> tuple[int, float | None]:
    """The number of nodes, and since when none has waited; `waiting` is of each node."""
    total = sum(waiting)
    if total:
        return max(n_now, math.ceil(n_now * total / (WAITING_PER_NODE * max(1, len(waiting))))), None
    if idle_since is None:
        return n_now, now
    return (n_now - 1, now) if now - idle_since >= IDLE_S else (n_now, idle_since)
