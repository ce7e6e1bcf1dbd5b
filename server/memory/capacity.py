"""The plan of a load without the load: what it would take, what would be evicted for it, and what else would fit. Pure.

The answer of `onecard fit` and `GET /v1/capacity`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from backends.messages import KvType
from backends.plan import JOBS_AT_ONCE, Amount
from backends.registry import backend_of
from server.memory.placement import Placed, largest_context, place
from server.scheduling.budget import Refused
from server.scheduling.eviction import Candidate, choose, freed_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backends.backend import Header
    from backends.plan import Footprint, LoadPlan, Parts, Wish
    from server.memory.estimator import Estimate

MOST_ALTERNATIVES: Final = 6
_LEAST_CONTEXT: Final = 512


@dataclass(frozen=True)
class WishChange:
    """What the question wants otherwise than configured; None leaves it."""

    context: int | None = None
    parallel: int | None = None
    kv_type: KvType | None = None

    def over(self, wish: Wish) -> Wish:
        """The wish with these in their places: what was asked for is not changed any more."""
        named = {name for name in ("parallel", "kv_type") if getattr(self, name) is not None}
        return replace(
            wish,
            context=self.context or wish.context,
            parallel=self.parallel or wish.parallel,
            kv_type=self.kv_type or wish.kv_type,
            open=frozenset(name for name in wish.open if name not in named),
        )


class PlanStatus(msgspec.Struct, frozen=True):
    """A configuration."""

    context: int
    parallel: int
    """Requests at once; of a model that gives vectors or scores what its engine takes, which costs no memory."""
    kv_type: str
    gpu_layers: int
    """Layers on the card, the output layer counted; 0 on the CPU."""
    kv_tokens: int = 0
    """Of a KV pool that all sequences share; 0: each has cells for a whole context."""


class Alternative(PlanStatus, frozen=True, kw_only=True):
    """A configuration that fits, and what it takes."""

    total_bytes: int
    """Of the memory in which the model computes."""


class SideStatus(msgspec.Struct, frozen=True):
    """What one memory holds of a load."""

    parts: dict[str, int]
    total_bytes: int
    budget_bytes: int
    free_bytes: int


class Capacity(msgspec.Struct, frozen=True):
    """What would happen. `parts`, totals and budget are of the memory in which the model computes."""

    model: str
    backend: str
    source: str
    """Where the estimate comes from: `measured`, `dry` (a load that allocates nothing) or `header` (computed)."""
    parts: dict[str, int]
    total_bytes: int
    budget_bytes: int
    free_bytes: int
    fits: bool
    plan: PlanStatus
    """The plan that would be loaded; where none fits, the one that comes nearest."""
    would_evict: list[str]
    alternatives: list[Alternative]
    """The largest other configurations that fit, the longest context first."""
    reason: str | None = None
    """Why it does not fit."""
    gives: str = "text"
    """What the model answers with: `text`, `vectors`, `scores` or the word of another kind of job."""
    trained_context: int | None = None
    """Tokens that the model was trained for; None where its files do not say."""
    device: SideStatus | None = None
    """The card's memory; None on a machine without one."""
    host: SideStatus | None = None
    """Host memory."""


def capacity_of(
    name: str,
    header: Header,
    wish: Wish,
    estimate: Callable[[LoadPlan], Estimate],
    *,
    budget: Amount,
    free: Amount,
    residents: Sequence[Candidate] = (),
) -> Capacity:
    """What a load of the model would come to; `residents` are the others that may leave, `free` what is free.

    A model that is resident counts as free, because it would be loaded in its own place.
    """

    def footprint_of(plan: LoadPlan) -> Footprint:
        return estimate(plan).footprint

    usable = (free + freed_by(residents)).at_most(budget)
    placed = place(name, header, wish, budget=budget, free=usable, estimate=footprint_of)
    fits = isinstance(placed, Placed)
    plan = placed.plan if isinstance(placed, Placed) else _nearest(header, wish, usable, footprint_of)
    footprint = footprint_of(plan)
    leaving = choose(residents, footprint.amount - free) if fits else None
    device = _side(footprint.device, budget.device, free.device) if plan.device == "cuda" else None
    host = _side(footprint.host, budget.host, free.host)
    main = host if device is None else device
    return Capacity(
        model=name,
        backend=header.backend,
        source=estimate(plan).source,
        parts=main.parts,
        total_bytes=main.total_bytes,
        budget_bytes=main.budget_bytes,
        free_bytes=main.free_bytes,
        fits=fits,
        plan=PlanStatus(plan.context, _parallel(header, plan), plan.kv_type, _n_layers(header, plan), plan.kv_tokens),
        would_evict=sorted(candidate.name for candidate in leaving or ()),
        alternatives=_alternatives(header, plan, usable, footprint_of, fits=fits),
        reason=placed.message if isinstance(placed, Refused) else None,
        gives=header.gives,
        trained_context=header.n_ctx_train or None,
        device=device,
        host=host,
    )


def _nearest(header: Header, wish: Wish, room: Amount, footprint_of: Callable[[LoadPlan], Footprint]) -> LoadPlan:
    """Of plans that do not fit the one that lacks least."""
    plans = backend_of(header).plans(header, wish)
    return min(plans, key=lambda plan: (footprint_of(plan).amount - room).no_less_than_none().total_bytes)


def _side(parts: Parts, budget_bytes: int, free_bytes: int) -> SideStatus:
    return SideStatus(parts.by_name, parts.total_bytes, budget_bytes, free_bytes)


def _alternatives(
    header: Header, plan: LoadPlan, usable: Amount, footprint_of: Callable[[LoadPlan], Footprint], *, fits: bool
) -> list[Alternative]:
    """Nothing that is no more than the plan, where that fits, or than another one with the cache that was asked for."""
    found: list[Alternative] = []
    for other in _variants(header, plan, footprint_of):
        context = largest_context(other, usable, footprint_of)
        best = replace(other, context=context)
        if context < _LEAST_CONTEXT or best == plan:
            continue
        if (fits and _covers(plan, best)) or any(_covers(better, best) for better in found):
            continue
        layers = _n_layers(header, best)
        parallel, total_bytes = _parallel(header, best), footprint_of(best).on(best.device).total_bytes
        found.append(Alternative(context, parallel, best.kv_type, layers, total_bytes=total_bytes))
    return sorted(found, key=lambda a: (-a.context, -a.parallel, a.total_bytes))[:MOST_ALTERNATIVES]


def _covers(better: LoadPlan | Alternative, other: LoadPlan) -> bool:
    return better.context >= other.context and better.parallel >= other.parallel


def _variants(header: Header, plan: LoadPlan, footprint_of: Callable[[LoadPlan], Footprint]) -> Iterator[LoadPlan]:
    """Plans whose longest context is worth knowing, the cache that was asked for before a smaller one."""
    longest = replace(plan, context=max(header.n_ctx_train, plan.context), kv_tokens=0)
    smaller = replace(longest, kv_type="q8_0")
    kv_types: list[KvType] = [plan.kv_type]
    if footprint_of(smaller).amount.total_bytes < footprint_of(longest).amount.total_bytes:
        kv_types.append("q8_0")
    parallels = (2 * plan.parallel, plan.parallel, 1) if header.gives == "text" else (plan.parallel,)
    for kv_type in kv_types:
        for parallel in dict.fromkeys(parallels):
            yield replace(longest, parallel=parallel, kv_type=kv_type)
    if plan.device == "cuda":
        for n_layers in range(header.n_layers, 0, -max(1, header.n_layers // 4)):
            yield replace(longest, gpu_layers=n_layers)


def _parallel(header: Header, plan: LoadPlan) -> int:
    return plan.parallel if header.gives == "text" else JOBS_AT_ONCE


def _n_layers(header: Header, plan: LoadPlan) -> int:
    if plan.device == "cpu":
        return 0
    return header.n_layers + 1 if plan.gpu_layers < 0 else plan.gpu_layers
