"""Who is evicted when memory is needed: the set of candidates that frees enough at the lowest score. Pure.

The eviction score of a model is the time its reload is expected to cost: measured load seconds, times how often it is
asked for, times its priority. Where both memories are short the set has to free enough of each. What may leave at all
is decided in `server.scheduling.swaps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backends.plan import Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

EXACT_UP_TO: Final = 12
"""Candidates among which the best set is searched for; among more it is approximated."""
_STEP: Final = 0.01
"""Seconds that one victim more is worth, so that of equal sets the one with fewer victims leaves."""
_LARGEST_PRIORITY: Final = 10


@dataclass(frozen=True)
class Candidate:
    """A resident that may leave."""

    name: str
    frees: Amount
    score: float

    @property
    def cost(self) -> float:
        """What its leaving costs, never nothing."""
        return self.score + _STEP


def eviction_score(*, load_s: float, heat: float, priority: int) -> float:
    """The cost of letting a model go; `heat` counts its requests, older ones less, each step of priority doubles."""
    weight = 2.0 ** max(-_LARGEST_PRIORITY, min(priority, _LARGEST_PRIORITY))
    return load_s * heat * weight


def helps(frees: Amount, needed: Amount) -> bool:
    """Whether it frees anything of a memory that is short."""
    return (needed.device > 0 and frees.device > 0) or (needed.host > 0 and frees.host > 0)


def freed_by(candidates: Sequence[Candidate]) -> Amount:
    """What all of them hold."""
    return sum((c.frees for c in candidates), Amount())


def choose(candidates: Sequence[Candidate], needed: Amount) -> list[Candidate] | None:
    """The cheapest set that frees what is needed of each memory; None when all of them together do not."""
    if not needed.no_less_than_none():
        return []
    if not needed.within(freed_by(candidates)):
        return None
    density = _Density(needed)
    useful = [c for c in candidates if helps(c.frees, needed)]
    useful.sort(key=lambda c: (c.cost / density.of(c.frees), c.name))
    approximate = _prune(_greedy(useful, needed), needed)
    if len(useful) > EXACT_UP_TO:
        return approximate
    return _search(useful, needed, approximate, density)


class _Density:
    """Bytes of the memories that are short as one figure: plainly of one, as shares of what is needed of two."""

    def __init__(self, needed: Amount) -> None:
        both = needed.device > 0 and needed.host > 0
        self._device = (1 / needed.device if both else 1) if needed.device > 0 else 0
        self._host = (1 / needed.host if both else 1) if needed.host > 0 else 0

    def of(self, amount: Amount) -> float:
        return max(0, amount.device) * self._device + max(0, amount.host) * self._host


def _enough(missing: Amount) -> bool:
    return missing.device <= 0 and missing.host <= 0


def _greedy(by_density: Sequence[Candidate], needed: Amount) -> list[Candidate]:
    """The cheapest per byte until it is enough, or the cheapest one that is enough alone."""
    single = min((c for c in by_density if needed.within(c.frees)), key=lambda c: c.cost, default=None)
    taken: list[Candidate] = []
    missing = needed
    for candidate in by_density:
        if _enough(missing):
            break
        if helps(candidate.frees, missing):
            taken.append(candidate)
            missing -= candidate.frees
    return [single] if single is not None and single.cost <= _cost(taken) else taken


def _prune(taken: list[Candidate], needed: Amount) -> list[Candidate]:
    """Leave out, dearest first, the models that need not go."""
    surplus = freed_by(taken) - needed
    kept = []
    for candidate in sorted(taken, key=lambda c: -c.cost):
        if candidate.frees.within(surplus.no_less_than_none()):
            surplus -= candidate.frees
        else:
            kept.append(candidate)
    return kept


def _search(
    by_density: Sequence[Candidate], needed: Amount, best: list[Candidate], density: _Density
) -> list[Candidate]:
    """Branch and bound: no set can be cheaper than its bytes at the cost of the cheapest byte that is left."""
    best_cost = _cost(best)
    stack: list[tuple[int, Amount, float, tuple[Candidate, ...]]] = [(0, needed, 0.0, ())]
    while stack:
        index, missing, cost, taken = stack.pop()
        if _enough(missing):
            if cost < best_cost:
                best, best_cost = list(taken), cost
            continue
        if index == len(by_density):
            continue
        candidate = by_density[index]
        if cost + density.of(missing) * candidate.cost / density.of(candidate.frees) >= best_cost:
            continue
        stack.append((index + 1, missing, cost, taken))
        stack.append((index + 1, missing - candidate.frees, cost + candidate.cost, (*taken, candidate)))
    return best


def _cost(candidates: Sequence[Candidate]) -> float:
    return sum(c.cost for c in candidates)
