"""The plan of a load without the load: what it would take, what would be evicted for it, and what else would fit. Pure.

The answer of `onecard fit` and `GET /v1/capacity`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec

from backends.messages import KvType
from backends.plan import JOBS_AT_ONCE
from backends.registry import backend_of
from server.memory.placement import Placed, Refused, largest_context, place
from server.scheduling.eviction import Candidate, choose

if TYPE_CHECKING:
    from backends.backend import Header
    from backends.plan import Footprint, LoadPlan, Wish
    from server.memory.estimates import Estimate
    from server.pool.status import ModelStatus

MOST_ALTERNATIVES: Final = 6
_LEAST_CONTEXT: Final = 512
_BUSY: Final = 1000.0


@dataclass(frozen=True)
class Asked:
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
    """A configuration that fits, and its price."""

    total_bytes: int


class Capacity(msgspec.Struct, frozen=True):
    """What would happen."""

    model: str
    backend: str
    source: str
    """Where the price comes from: `measured`, `dry` (a load that allocates nothing) or `header` (computed)."""
    parts: dict[str, int]
    total_bytes: int
    budget_bytes: int
    free_bytes: int
    fits: bool
    plan: PlanStatus
    """The plan that would be loaded; where none fits, the smallest that was tried."""
    would_evict: list[str]
    alternatives: list[Alternative]
    """The largest other configurations that fit, the longest context first."""
    reason: str | None = None
    """Why it does not fit."""
    gives: str = "text"
    """What the model answers with: `text`, `vectors`, `scores` or the word of another kind of job."""
    trained_context: int | None = None
    """Tokens that the model was trained for; None where its files do not say."""


def appraise(
    name: str,
    header: Header,
    wish: Wish,
    quote: Callable[[LoadPlan], Estimate],
    *,
    budget_bytes: int,
    free_bytes: int,
    residents: Sequence[Candidate] = (),
) -> Capacity:
    """What a load of the model would come to; `residents` are the others that may leave, `free_bytes` what is free.

    A model that is resident counts as free, because it would be loaded in its own place.
    """

    def price(plan: LoadPlan) -> Footprint:
        return quote(plan).footprint

    usable = min(budget_bytes, free_bytes + sum(resident.n_bytes for resident in residents))
    placed = place(name, header, wish, budget_bytes=budget_bytes, free_bytes=usable, price=price)
    plan = (
        placed.plan
        if isinstance(placed, Placed)
        else min(backend_of(header).plans(header, wish), key=lambda p: price(p).total_bytes)
    )
    footprint = price(plan)
    leaving = choose(residents, footprint.total_bytes - free_bytes) if isinstance(placed, Placed) else None
    return Capacity(
        model=name,
        backend=header.backend,
        source=quote(plan).source,
        parts=footprint.on(plan.device).by_name,
        total_bytes=footprint.total_bytes,
        budget_bytes=budget_bytes,
        free_bytes=free_bytes,
        fits=isinstance(placed, Placed),
        plan=PlanStatus(plan.context, _parallel(header, plan), plan.kv_type, _n_layers(header, plan), plan.kv_tokens),
        would_evict=sorted(candidate.name for candidate in leaving or ()),
        alternatives=_alternatives(header, plan, usable, price, fits=isinstance(placed, Placed)),
        reason=placed.message if isinstance(placed, Refused) else None,
        gives=header.gives,
        trained_context=header.n_ctx_train or None,
    )


def _alternatives(
    header: Header, plan: LoadPlan, usable_bytes: int, price: Callable[[LoadPlan], Footprint], *, fits: bool
) -> list[Alternative]:
    """Nothing that is no more than the plan, where that fits, or than another one with the cache that was asked for."""
    found: list[Alternative] = []
    for other in _variants(header, plan, price):
        context = largest_context(other, usable_bytes, price)
        best = replace(other, context=context)
        if context < _LEAST_CONTEXT or best == plan:
            continue
        if (fits and _covers(plan, best)) or any(_covers(better, best) for better in found):
            continue
        layers = _n_layers(header, best)
        parallel, total_bytes = _parallel(header, best), price(best).total_bytes
        found.append(Alternative(context, parallel, best.kv_type, layers, total_bytes=total_bytes))
    return sorted(found, key=lambda a: (-a.context, -a.parallel, a.total_bytes))[:MOST_ALTERNATIVES]


def _covers(better: LoadPlan | Alternative, other: LoadPlan) -> bool:
    return better.context >= other.context and better.parallel >= other.parallel


def _variants(header: Header, plan: LoadPlan, price: Callable[[LoadPlan], Footprint]) -> Iterator[LoadPlan]:
    """Plans whose longest context is worth knowing, the cache that was asked for before a smaller one."""
    longest = replace(plan, context=max(header.n_ctx_train, plan.context), kv_tokens=0)
    smaller = replace(longest, kv_type="q8_0")
    kv_types: list[KvType] = [plan.kv_type]
    if price(smaller).total_bytes < price(longest).total_bytes:
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


def who_may_leave(models: Iterable[ModelStatus], held_bytes: Callable[[str], int], *, but: str) -> list[Candidate]:
    """The residents in the order in which they are missed least: idle ones first, the longest idle before others."""
    return [
        Candidate(m.name, held_bytes(m.name), _BUSY if m.idle_s is None else 1.0 / (1.0 + m.idle_s))
        for m in models
        if m.name != but and not m.pinned and held_bytes(m.name)
    ]
