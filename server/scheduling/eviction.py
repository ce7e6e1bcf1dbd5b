"""Who leaves when room is needed: the set of candidates that frees enough with the least regret. Pure.

The regret of a model is the time its reload is expected to cost: measured load seconds, times how often it is asked
for, times its priority. What may leave at all is decided in `server.scheduling.swaps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

EXACT_UP_TO: Final = 12
"""Candidates among which the best set is searched for; among more it is approximated."""
_STEP: Final = 0.01
"""Seconds of regret that one victim more is worth, so that of equal sets the one with fewer victims leaves."""
_LARGEST_PRIORITY: Final = 10


@dataclass(frozen=True)
class Candidate:
    """A resident that may leave."""

    name: str
    n_bytes: int
    regret: float

    @property
    def cost(self) -> float:
        """What its leaving costs, never nothing."""
        return self.regret + _STEP


def regret(*, load_s: float, heat: float, priority: int) -> float:
    """The cost of letting a model go; `heat` counts its requests, older ones less, each step of priority doubles."""
    weight = 2.0 ** max(-_LARGEST_PRIORITY, min(priority, _LARGEST_PRIORITY))
    return load_s * heat * weight


def choose(candidates: Sequence[Candidate], needed_bytes: int) -> list[Candidate] | None:
    """The cheapest set that frees the bytes; None when all of them together do not."""
    useful = [c for c in candidates if c.n_bytes > 0]
    if sum(c.n_bytes for c in useful) < needed_bytes:
        return None
    if needed_bytes <= 0:
        return []
    useful.sort(key=lambda c: (c.cost / c.n_bytes, c.name))
    approximate = _prune(_greedy(useful, needed_bytes), needed_bytes)
    if len(useful) > EXACT_UP_TO:
        return approximate
    return _search(useful, needed_bytes, approximate)


def _greedy(by_density: Sequence[Candidate], needed_bytes: int) -> list[Candidate]:
    """The cheapest per byte until it is enough, or the cheapest one that is enough alone."""
    single = min((c for c in by_density if c.n_bytes >= needed_bytes), key=lambda c: c.cost, default=None)
    taken: list[Candidate] = []
    freed = 0
    for candidate in by_density:
        if freed >= needed_bytes:
            break
        taken.append(candidate)
        freed += candidate.n_bytes
    return [single] if single is not None and single.cost <= _cost(taken) else taken


def _prune(taken: list[Candidate], needed_bytes: int) -> list[Candidate]:
    """Leave out, dearest first, the models that need not go."""
    spare = sum(c.n_bytes for c in taken) - needed_bytes
    kept = []
    for candidate in sorted(taken, key=lambda c: -c.cost):
        if candidate.n_bytes <= spare:
            spare -= candidate.n_bytes
        else:
            kept.append(candidate)
    return kept


def _search(by_density: Sequence[Candidate], needed_bytes: int, best: list[Candidate]) -> list[Candidate]:
    """Branch and bound: no set can be cheaper than its bytes at the price of the cheapest byte that is left."""
    best_cost = _cost(best)
    stack: list[tuple[int, int, float, tuple[Candidate, ...]]] = [(0, needed_bytes, 0.0, ())]
    while stack:
        index, missing, cost, taken = stack.pop()
        if missing <= 0:
            if cost < best_cost:
                best, best_cost = list(taken), cost
            continue
        if index == len(by_density):
            continue
        candidate = by_density[index]
        if cost + missing * candidate.cost / candidate.n_bytes >= best_cost:
            continue
        stack.append((index + 1, missing, cost, taken))
        stack.append((index + 1, missing - candidate.n_bytes, cost + candidate.cost, (*taken, candidate)))
    return best


def _cost(candidates: Sequence[Candidate]) -> float:
    return sum(c.cost for c in candidates)
