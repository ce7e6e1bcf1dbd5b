"""The prompt of one job as its client gets it back: every token with the log-probability it had where it stands.

Scored from the logits of the prompt's own rows, a few per pass, as the prompt is computed. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.generation import sampling
from backends.prompts.text import TextStream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from backends.messages import TokenLogprob


class Echo:
    """`tokens` are `(n,) int32`, `pieces` what each of them shows; `literal` spells the `n_top` alternatives."""

    def __init__(
        self, tokens: NDArray[np.int32], pieces: Sequence[bytes], *, n_top: int, literal: Callable[[int], bytes]
    ) -> None:
        self._tokens = tokens
        self._pieces = pieces
        self._n_top = n_top
        self._literal = literal
        self._stream = TextStream(keep_logprobs=True)
        self._said: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._n_scored = 0
        self.told = False
        """Everything was said."""
        self._take(sampling.unscored(pieces[0]))

    @property
    def scoring(self) -> bool:
        """Tokens wait for their logits, so the prompt has to be computed, whether its beginning is cached or not."""
        return self._n_scored < len(self._pieces)

    def wanted(self, past: int, count: int) -> range:
        """Positions among `count` ones behind `past` whose logits are asked for: those before a token to score."""
        return range(max(past, self._n_scored - 1), min(past + count, len(self._pieces) - 1))

    def score(self, position: int, logits: NDArray[np.float32]) -> None:
        """Score the token behind a position from that position's `(n_vocab,) float32` logits."""
        token = int(self._tokens[position + 1])
        values, best = sampling.logprobs(logits, self._n_top)
        self._take(sampling.describe(token, values, best, self._literal, wrote=self._pieces[position + 1]))

    def _take(self, scored: TokenLogprob) -> None:
        text, logprobs, _ = self._stream.push(scored.bytes, scored)
        self._say(text, logprobs)
        self._n_scored += 1

    def _say(self, text: str, logprobs: list[TokenLogprob]) -> None:
        self._said.append(text)
        self._logprobs += logprobs

    def news(self) -> tuple[str, list[TokenLogprob]]:
        """What is new since the last call: text that splits no character, and its tokens."""
        if not self.scoring and not self.told:
            tail = self._stream.flush()
            self._say(tail.text, tail.logprobs)
            self.told = True
        text, logprobs = "".join(self._said), self._logprobs
        self._said, self._logprobs = [], []
        return text, logprobs
