"""The learning rate of each step: a warm-up, then a cosine down to nothing. Pure."""

from __future__ import annotations

import math


def rate(step: int, *, steps: int, peak: float, warmup_share: float) -> float:
    """Of a step, from 1, of so many. The first has some of it and the last a little."""
    warmup = min(max(round(steps * warmup_share), 0), steps - 1)
    if step <= warmup:
        return peak * step / (warmup + 1)
    done = (step - warmup - 1) / max(steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
