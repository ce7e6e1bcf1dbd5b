"""Whose turn it is where one pass computes with one adapter: sequences of the same adapter go together. Pure.

A turn lasts a few steps, because a change of adapters costs a library more than a step (see `backends.gguf.lora`). Who
waits comes next, the longest away first: with k adapters running none waits longer than k - 1 turns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from backends.generation.sequence import Phase

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from backends.generation.batching import Demand
    from backends.generation.sequence import Sequence

TURN_US: Final = 20_000.0
"""A turn ends with the first step behind it; a shorter wait is none to anyone."""
LEAST_STEPS: Final = 2
"""Of a turn, however long they take."""


def are_apart(sequences: Iterable[Sequence]) -> bool:
    """Whether those that have cells are of several adapters."""
    return len({s.request.job.adapter for s in sequences if s.phase is not Phase.WAITING}) > 1


class Turn(NamedTuple):
    """Who may have a share in the next step, and how many others wait for it."""

    own: list[Demand]
    n_decoding: int = 0
    """Others that decode."""
    n_prompts: int = 0
    """Others whose prompts are not computed yet."""


class AdapterTurns:
    """Of one engine; time is an argument."""

    def __init__(self) -> None:
        self._now = ""
        self._began_us = 0.0
        self._n_steps = 0
        self._n_turns = 0
        self._last_turn: dict[str, int] = {}

    def own(self, demands: list[Demand], sequences: list[Sequence], now_us: float) -> Turn:
        """What those want whose turn the next step is, and who waits for theirs."""
        adapters = {demand.sequence: sequences[demand.sequence].request.job.adapter for demand in demands}
        if not adapters:
            return Turn(demands)
        adapter = self.next(set(adapters.values()), now_us)
        others = [demand for demand in demands if adapters[demand.sequence] != adapter]
        n_decoding = sum(demand.decoding for demand in others)
        own = [demand for demand in demands if adapters[demand.sequence] == adapter]
        return Turn(own, n_decoding, len(others) - n_decoding)

    def next(self, wanting: Collection[str], now_us: float) -> str:
        """The adapter (empty: none) that the next step computes with, of those that want one."""
        over = self._n_steps >= LEAST_STEPS and now_us - self._began_us >= TURN_US
        if self._now not in wanting or (over and len(wanting) > 1):
            others = sorted(name for name in wanting if name != self._now)
            self._n_turns += 1
            self._last_turn[self._now] = self._n_turns
            self._now = min(others, key=lambda name: self._last_turn.get(name, 0))
            self._n_steps, self._began_us = 0, now_us
        self._n_steps += 1
        return self._now
