"""What narrows one row of logits beside top_k, top_p and min_p, as llama.cpp computes it. Pure.

`values` are `(n,) float32` logits, the best first. What is impossible is -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from backends.generation.sampler_order import LEAST_SHARE, MIROSTAT_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_XTC: Final = 0.5
"""From this threshold on no two tokens can be above it."""


def shares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities."""
    found = np.exp((values - values.max()).astype(np.float64))
    return np.asarray(found / found.sum())


def n_possible(values: NDArray[np.float32], least_share: float = LEAST_SHARE) -> int:
    """How many of the best are no less likely than such a share of the likeliest."""
    return int(np.searchsorted(-values, -(values[0] + np.float32(math.log(least_share))), side="right"))


def above_sigma(logits: NDArray[np.float32], n_sigma: float) -> None:
    """Forbid what is more than so many standard deviations below the best, in place."""
    real = logits[logits > -np.inf].astype(np.float64)
    logits[logits < logits.max() - n_sigma * real.std()] = -np.inf


def dynamic_temperature(values: NDArray[np.float32], temperature: float, span: float, exponent: float) -> float:
    """The temperature of a row by its entropy: the more certain, the colder."""
    if values.size < 2:  # one value has no entropy
        return temperature
    found = shares(values)
    found = found[found > 0]
    entropy = float(-(found * np.log(found)).sum()) / math.log(values.size)
    coldest = max(0.0, temperature - span)
    return float(coldest + (temperature + span - coldest) * entropy**exponent)


def typical(values: NDArray[np.float32], typical_p: float) -> NDArray[np.intp]:
    """Places of the tokens whose surprise is nearest to the entropy and that together reach the share."""
    found = shares(values)
    surprise = -np.log(found)
    nearest = np.argsort(np.abs(surprise - (found * surprise).sum()), kind="stable")
    n_kept = int(np.searchsorted(found[nearest].cumsum(), typical_p, side="right")) + 1
    return np.sort(nearest[:n_kept])


def n_excluded(values: NDArray[np.float32], threshold: float) -> int:
    """How many of the best xtc leaves out: all that reach the threshold but the last of them."""
    if threshold > _MOST_XTC:
        return 0
    return max(0, int((shares(values) >= threshold).sum()) - 1)


@dataclass(slots=True)
class Mirostat:
    """Keeps the surprise of a text at a target, in bits."""

    version: int
    tau: float
    eta: float
    n_vocab: int
    mu: float = 0.0

    def __post_init__(self) -> None:
        self.mu = 2 * self.tau

    def n_kept(self, values: NDArray[np.float32]) -> int:
        """How many of the best may be drawn."""
        found = shares(values)
        n = int((-np.log2(found) <= self.mu).sum()) if self.version == 2 else self._by_slope(found)
        return min(max(1, n), values.size)

    def _by_slope(self, found: NDArray[np.float64]) -> int:
        n = min(MIROSTAT_TOKENS, found.size) - 1
        if n < 1:
            return 1
        ranks = np.arange(1, n + 1)
        slopes, falls = np.log((ranks + 1) / ranks), np.log(found[:n] / found[1 : n + 1])
        slope = float((slopes * falls).sum() / (slopes * slopes).sum())
        beyond = slope - 1
        below = 1 - self.n_vocab**-beyond
        if below == 0 or slope <= 0:
            return found.size
        return min(found.size, int((beyond * 2**self.mu / below) ** (1 / slope)))

    def drawn(self, share: float) -> None:
        """The token that was drawn had this share of those that were kept."""
        self.mu -= self.eta * (-math.log2(share) - self.tau)
