"""DRY: a penalty on tokens that would go on with a repetition, as llama.cpp computes it. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from backends.generation.decoder import DecoderModel
    from backends.messages import Sampling

_LARGEST: Final = math.log(float(np.finfo(np.float32).max))
_MOST_TAIL: Final = 20
"""Tokens of a breaker behind its first one."""

Breakers = dict[int, list[tuple[int, ...]]]
"""The first token of every way to write a breaker -> the tokens that follow it."""


def breakers_of(texts: Iterable[str], model: DecoderModel) -> Breakers:
    """Tokens that hold a text, and those that end with a beginning of it together with its rest."""
    literals = [model.literal(token) for token in range(model.n_vocab)]
    found: Breakers = {}
    for text in texts:
        wanted = text.encode("utf-8", "replace")
        tails = {n: _tail(wanted[n:], model) for n in range(1, len(wanted))}
        for token, literal in enumerate(literals):
            for tail in _ways(wanted, literal, tails):
                if tail not in found.setdefault(token, []):
                    found[token].append(tail)
    return found


def _ways(wanted: bytes, literal: bytes, tails: dict[int, tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    if wanted in literal:
        yield ()
        return
    for n in range(1, min(len(wanted) - 1, len(literal)) + 1):
        if literal.endswith(wanted[:n]):
            yield tails[n]


def _tail(rest: bytes, model: DecoderModel) -> tuple[int, ...]:
    return tuple(model.tokenize(rest.decode("utf-8", "replace"), parse_special=False)[:_MOST_TAIL])


class Dry:
    """What one sequence has said so far, its prompt included, and what that forbids more and more."""

    def __init__(self, sampling: Sampling, prompt: Iterable[int], breakers: Breakers) -> None:
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed, self._last_n = sampling.dry_allowed_length, sampling.dry_penalty_last_n
        self._breakers = breakers
        self._most_exponent = _LARGEST / math.log(self._base) if self._base > 1.000001 else math.inf
        said = np.fromiter(prompt, dtype=np.int64)
        self._said = np.concatenate([said, np.zeros(256, dtype=np.int64)])
        self._n = said.size

    def add(self, token: int) -> None:
        """One more."""
        if self._n == self._said.size:
            self._said = np.concatenate([self._said, np.zeros_like(self._said)])
        self._said[self._n] = token
        self._n += 1

    def edit(self, logits: NDArray[np.float32]) -> None:
        """Lower the logits of tokens that would go on with a repetition, in place."""
        latest = self._said[: self._n][::-1]
        if self._last_n >= 0:
            latest = latest[: self._last_n]
        limit = self._limit(latest)
        if latest.size <= self._allowed or limit < self._allowed:
            return
        for token, length in self._repeats(latest, limit).items():
            if () in self._breakers.get(token, ()):
                continue
            exponent = min(length - self._allowed, self._most_exponent)
            logits[token] -= np.float32(min(self._multiplier * self._base**exponent, np.finfo(np.float32).max))

    def _limit(self, latest: NDArray[np.int64]) -> int:
        """How far back the last breaker is, beyond which no repetition counts."""
        for place in np.flatnonzero(np.isin(latest, list(self._breakers))).tolist():
            longest = max((n for n in self._matches(latest, place)), default=-1)
            if longest >= 0:
                return int(place) - longest
        return latest.size

    def _matches(self, latest: NDArray[np.int64], place: int) -> Iterator[int]:
        for tail in self._breakers[int(latest[place])]:
            if len(tail) <= place and all(latest[place - 1 - n] == token for n, token in enumerate(tail)):
                yield len(tail)

    def _repeats(self, latest: NDArray[np.int64], limit: int) -> dict[int, int]:
        """Token -> the longest end of the text that stood before it once, where that is long enough."""
        found: dict[int, int] = {}
        most = min(limit, self._allowed + math.ceil(min(self._most_exponent, latest.size)))
        shifts = np.arange(1, latest.size)
        for n in range(most + 1):
            if n >= self._allowed:
                for token in np.unique(latest[shifts - 1]).tolist():
                    found[token] = n
            if n == most:
                break
            shifts = shifts[shifts + n < latest.size]
            shifts = shifts[latest[n] == latest[shifts + n]]
            if not shifts.size:
                break
        return found
