"""Pure: logits of two models over the same tokens become perplexity, KL divergence and agreement, row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Quality:
    """What a report says about one model."""

    n_tokens: int
    perplexity: float
    perplexity_error: float
    """Standard error of the perplexity."""
    kl_mean: float
    """Nats per token, against the source."""
    kl_p999: float
    """What 99.9 % of the tokens stay below."""
    agreement: float
    """Share of tokens for which both would choose the same."""


@dataclass
class DivergenceTally:
    """Sums over all scored tokens; memory is one number per token."""

    losses: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    n_agree: int = 0

    def add(
        self, base: npt.NDArray[np.float32], other: npt.NDArray[np.float32], following: npt.NDArray[np.int64]
    ) -> None:
        """Rows of logits `(n, n_vocab)` of the source and of the model, and the tokens that follow, `(n,)`."""
        base_log, other_log = log_softmax(base), log_softmax(other)
        divergence = np.einsum("ij,ij->i", np.exp(base_log), base_log - other_log)
        self.divergences += np.maximum(divergence, 0.0).tolist()
        self.losses += (-other_log[np.arange(len(following)), following]).tolist()
        self.n_agree += int((base.argmax(1) == other.argmax(1)).sum())

    def result(self) -> Quality:
        """The figures over everything added."""
        losses, divergences = np.array(self.losses), np.array(self.divergences)
        perplexity = math.exp(min(float(losses.mean()), 700.0))
        error = perplexity * float(losses.std()) / math.sqrt(len(losses))
        return Quality(
            n_tokens=len(losses),
            perplexity=perplexity,
            perplexity_error=error,
            kl_mean=float(divergences.mean()),
            kl_p999=float(np.quantile(divergences, 0.999)),
            agreement=self.n_agree / len(losses),
        )


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of each row, in double precision: differences of near equals are what is measured here."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def windows(tokens: list[int], *, size: int, first_token: int | None, most: int) -> list[list[int]]:
    """Neighbouring windows of a text; the first token of each gives way to the one the model wants there."""
    found = [tokens[start : start + size] for start in range(0, len(tokens) - size + 1, size)][:most]
    return [[first_token, *window[1:]] if first_token is not None else window for window in found]
