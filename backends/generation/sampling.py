"""One row of logits: what is forbidden in it, and the log-probabilities it stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backends.messages import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def forbid(row: NDArray[np.float32], tokens: NDArray[np.int32]) -> None:
    """Make `tokens` impossible in one `(n_vocab,) float32` row of logits, in place."""
    row[tokens] = -np.inf


def allow_only(row: NDArray[np.float32], allowed: NDArray[np.bool_]) -> None:
    """Make every token impossible that `(n_vocab,) bool` does not allow, in place."""
    np.copyto(row, -np.inf, where=~allowed)


def logprobs(row: NDArray[np.float32], n_top: int) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Log-probabilities `(n_vocab,) float32` of the raw logits, and the ids `(n_top,)` of the best, best first."""
    shifted = row - row.max()
    values = shifted - np.log(np.exp(shifted).sum(dtype=np.float64)).astype(np.float32)
    if n_top == 0:
        return values, np.empty(0, dtype=np.intp)
    n_top = min(n_top, values.size)
    best = np.argpartition(values, -n_top)[-n_top:]
    return values, best[np.argsort(-values[best], kind="stable")]


def describe(
    token: int,
    values: NDArray[np.float32],
    best: NDArray[np.intp],
    literal: Callable[[int], bytes],
    *,
    wrote: bytes,
) -> TokenLogprob:
    """The message for one token that `wrote` these bytes of a text, and its alternatives.

    Control tokens, which write nothing, are known by their `literal`. Impossible tokens are clamped to -9999, as OpenAI
    does.
    """

    def one(candidate: int, wrote: bytes, top: list[TokenLogprob]) -> TokenLogprob:
        value = max(float(values[candidate]), -9999.0)
        name = (wrote or literal(candidate)).decode("utf-8", "replace")
        return TokenLogprob(token=name, logprob=value, bytes=wrote, top=top)

    others = [one(int(candidate), literal(int(candidate)), []) for candidate in best]
    return one(token, wrote, others)


def unscored(piece: bytes) -> TokenLogprob:
    """The first token of a prompt: nothing comes before it, so it has no probability."""
    return TokenLogprob(token=piece.decode("utf-8", "replace"), logprob=None, bytes=piece)
