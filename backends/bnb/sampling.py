"""Choosing the next token of one sequence from its row of logits, with the GGUF sampler's rules.

The order is that of `backends.generation.sampler_order`. What comes out depends on the row, the parameters and the seed
alone.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from backends.bnb import narrowing
from backends.bnb.dry import Breakers, Dry
from backends.generation.sampler_order import LEAST_TEMPERED, stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from backends.generation.sampler_order import Stage
    from backends.messages import Sampling

_QUICK: Final = frozenset({"top_k", "temperature", "top_p", "min_p", "draw"})
"""Stages that need not sort the whole row."""
_LIKELY: Final = 256
"""top_p sorts so many candidates first."""
_LIKELY_MORE: Final = 16
"""Then so many times as many, until they hold its share: a whole vocabulary of 131072 takes ten times as long."""


@dataclass(slots=True)
class TokenTally:
    """How often each token came, as arrays that a penalty can be applied with."""

    n_tokens: int = 0
    """Different ones."""
    _tokens: NDArray[np.intp] = field(default_factory=lambda: np.zeros(64, dtype=np.intp))
    _counts: NDArray[np.float32] = field(default_factory=lambda: np.zeros(64, dtype=np.float32))
    _places: dict[int, int] = field(default_factory=dict)

    def add(self, token: int) -> None:
        """One more."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = self.n_tokens
            self.n_tokens += 1
            if place == self._tokens.size:
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            self._tokens[place] = token
        self._counts[place] += 1.0

    @property
    def tokens(self) -> NDArray[np.intp]:
        """`(n_tokens,)` ids."""
        return self._tokens[: self.n_tokens]

    @property
    def counts(self) -> NDArray[np.float32]:
        """`(n_tokens,)`, in the order of the ids."""
        return self._counts[: self.n_tokens]


class RowSampler:
    """One sequence's rules, its seed's random numbers and what it has said.

    `greedy` says that the best logit is all there is to it, so `sample` need not be asked.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt: Iterable[int],
        choice: int,
        row_of: Callable[[int], NDArray[np.float32]],
        breakers: Callable[[Sequence[str]], Breakers] = lambda _: {},
    ) -> None:
        """`row_of` gives the `(n_vocab,) float32` logits that belong to a row of the last batch; `breakers` what the
        vocabulary has of the texts over which no repetition reaches.
        """
        self._sampling = sampling
        self._row_of = row_of
        prompt = list(prompt)
        order = stages(sampling)
        self._dry = Dry(sampling, prompt, breakers(sampling.dry_sequence_breakers)) if "dry" in order else None
        self._mirostat: narrowing.Mirostat | None = None
        self._narrowing = [stage for stage in order if stage in NARROWING]
        self._is_quick = _QUICK.issuperset((*self._narrowing, order[-1])) and sampling.dynatemp_range == 0
        self._output = TokenTally() if sampling.presence_penalty or sampling.frequency_penalty else None
        self._seen = TokenTally() if sampling.repetition_penalty != 1.0 else None
        if self._seen is not None:
            for token in prompt:
                self._seen.add(token)
        self._cold = order[-1] == "greedy"
        self.greedy = order == ["greedy"]
        self._bias_tokens = np.array(list(sampling.logit_bias), dtype=np.intp)
        self._bias = np.array(list(sampling.logit_bias.values()), dtype=np.float32)
        # None takes a seed from the operating system; a text is hashed whole, so choices and large seeds differ.
        self._random = random.Random(None if sampling.seed is None else f"{sampling.seed}/{choice}")  # noqa: S311

    def sample(self, row: int) -> int:
        """Draw and accept a token from row `row` of the last batch."""
        logits = self._row_of(row)
        self._edit(logits)
        token = int(logits.argmax()) if self._cold else self._draw(logits)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Take in a token that another sampler of the same rules has drawn."""
        for tally in (self._output, self._seen, self._dry):
            if tally is not None:
                tally.add(token)

    def close(self) -> None:
        """Nothing is held outside of Python."""

    def _edit(self, logits: NDArray[np.float32]) -> None:
        sampling = self._sampling
        if self._bias.size:
            logits[self._bias_tokens] += self._bias
        if self._seen is not None:
            found, penalty = logits[self._seen.tokens], np.float32(sampling.repetition_penalty)
            logits[self._seen.tokens] = np.where(found > 0, found / penalty, found * penalty)
        if self._output is not None:
            penalties = self._output.counts * np.float32(sampling.frequency_penalty)
            logits[self._output.tokens] -= penalties + np.float32(sampling.presence_penalty)
        if self._dry is not None:
            self._dry.edit(logits)

    def _draw(self, logits: NDArray[np.float32]) -> int:
        sampling = self._sampling
        if not self._is_quick:
            return self._draw_sorted(logits)
        if not 0 < sampling.top_k < logits.size and sampling.top_p >= 1.0:
            return _pick(_above_least(logits / np.float32(sampling.temperature), sampling.min_p), self._random.random())
        ids, values = self._candidates(logits / np.float32(sampling.temperature))
        return int(ids[_pick(_above_least(values, sampling.min_p), self._random.random())])

    def _draw_sorted(self, logits: NDArray[np.float32]) -> int:
        ids, values = self.narrowed(logits)
        if not self._sampling.mirostat:
            return int(ids[_pick(values, self._random.random())])
        if self._mirostat is None:
            sampling = self._sampling
            tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
            self._mirostat = narrowing.Mirostat(sampling.mirostat, tau, eta, logits.size)
        values = values[: narrowing.n_possible(values)]
        values = values[: self._mirostat.n_kept(values)]
        place = _pick(values, self._random.random())
        self._mirostat.drawn(float(narrowing.shares(values)[place]))
        return int(ids[place])

    def narrowed(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Ids and logits of what may be drawn, the best first, by every stage in order; `logits` are changed."""
        stages = iter(self._narrowing)
        if "top_n_sigma" in self._narrowing:
            narrowing.above_sigma(logits, self._sampling.top_n_sigma)
            next(stages)
        ids, values = _best(logits, logits.size)
        for stage in stages:
            ids, values = NARROWING[stage](self._sampling, ids, values, self._random)
        return ids, values

    def _candidates(self, scaled: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Ids and scaled logits that top_k and top_p leave, best first."""
        sampling = self._sampling
        few = 0 < sampling.top_k < scaled.size
        ids, values = _best(scaled, sampling.top_k if few else min(_LIKELY, scaled.size))
        if sampling.top_p >= 1.0:
            return ids, values
        log_total = _log_total(values if few else scaled, largest=float(values[0]))
        n_kept = _nucleus(values, log_total, sampling.top_p)
        while n_kept == ids.size < scaled.size and not few:
            n_more = ids.size * _LIKELY_MORE
            ids, values = _best(scaled, n_more if 4 * n_more < scaled.size else scaled.size)
            n_kept = _nucleus(values, log_total, sampling.top_p)
        return ids[:n_kept], values[:n_kept]


def _best(values: NDArray[np.float32], n: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Ids and values of the `n` largest, largest first; of equals the lowest id."""
    if n >= values.size:
        ids = np.argsort(-values, kind="stable")
    else:
        ids = np.sort(np.argpartition(values, -n)[-n:])
        ids = ids[np.argsort(-values[ids], kind="stable")]
    return ids, values[ids]


def _log_total(values: NDArray[np.float32], *, largest: float) -> float:
    """The logarithm of what probabilities are shares of."""
    return largest + math.log(float(np.exp((values - largest).astype(np.float64)).sum()))


def _nucleus(values: NDArray[np.float32], log_total: float, top_p: float) -> int:
    """How many of the values, best first, are needed to reach a share of `top_p`; at least one."""
    shares = np.exp(values.astype(np.float64) - log_total).cumsum()
    return min(int(np.searchsorted(shares, top_p, side="left")) + 1, values.size)


def _above_least(values: NDArray[np.float32], min_p: float) -> NDArray[np.float32]:
    """Without those less likely than `min_p` times the likeliest."""
    if min_p <= 0.0:
        return values
    return np.where(values < values.max() + math.log(min_p), np.float32(-np.inf), values)


def _pick(values: NDArray[np.float32], number: float) -> int:
    """The place at which the probabilities of these logits, added up, pass `number` of 0..1."""
    sums = np.exp((values - values.max()).astype(np.float64)).cumsum()
    return min(int(np.searchsorted(sums, number * sums[-1], side="right")), int(np.flatnonzero(values > -np.inf)[-1]))


Candidates = tuple["NDArray[np.intp]", "NDArray[np.float32]"]


def _tempered(sampling: Sampling, ids: NDArray[np.intp], values: NDArray[np.float32], _: random.Random) -> Candidates:
    temperature = sampling.temperature
    if sampling.dynatemp_range > 0:
        n = narrowing.n_possible(values, LEAST_TEMPERED)
        ids, values = ids[:n], values[:n]
        span, exponent = sampling.dynatemp_range, sampling.dynatemp_exponent
        temperature = narrowing.dynamic_temperature(values, temperature, span, exponent)
    return (ids, values / np.float32(temperature)) if temperature > 0 else (ids[:1], values[:1])


def _typical(sampling: Sampling, ids: NDArray[np.intp], values: NDArray[np.float32], _: random.Random) -> Candidates:
    places = narrowing.typical(values[: narrowing.n_possible(values)], sampling.typical_p)
    return ids[places], values[places]


def _top_p(sampling: Sampling, ids: NDArray[np.intp], values: NDArray[np.float32], _: random.Random) -> Candidates:
    n_kept = _nucleus(values, _log_total(values, largest=float(values[0])), sampling.top_p)
    return ids[:n_kept], values[:n_kept]


def _min_p(sampling: Sampling, ids: NDArray[np.intp], values: NDArray[np.float32], _: random.Random) -> Candidates:
    kept = values >= values[0] + math.log(sampling.min_p)
    return ids[kept], values[kept]


def _xtc(sampling: Sampling, ids: NDArray[np.intp], values: NDArray[np.float32], dice: random.Random) -> Candidates:
    if dice.random() > sampling.xtc_probability:
        return ids, values
    n = narrowing.n_excluded(values, sampling.xtc_threshold)
    return ids[n:], values[n:]


Narrows: TypeAlias = "Callable[[Sampling, NDArray[np.intp], NDArray[np.float32], random.Random], Candidates]"
NARROWING: Final[dict[Stage, Narrows]] = {
    "top_n_sigma": lambda _sampling, ids, values, _dice: (ids, values),  # of the whole row, before it is sorted
    "top_k": lambda sampling, ids, values, _dice: (ids[: sampling.top_k], values[: sampling.top_k]),
    "temperature": _tempered,
    "typical_p": _typical,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
}
"""Each stage that leaves fewer candidates or moves them, the best first."""
