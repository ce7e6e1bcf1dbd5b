"""The plan of a load without the load: what it would take, what would be evicted for it, and what else would fit. Pure.

The answer of `onecard fit` and `GET /v1/capacity`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from backends.backend import HeaderError
from backends.files import adapters, foreign
from backends.messages import Figure, GeneratorPlan, KvTypes
from backends.plan import Amount
from backends.registry import BACKENDS, backend_of
from server.memory.placement import Placed, longest_context, place
from server.memory.speeds import SpeedStatus
from server.scheduling.budget import Refused
from server.scheduling.eviction import Candidate, choose, freed_by
from server.settings.config import not_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backends.backend import Header
    from backends.messages import LoadPlan
    from backends.plan import Footprint, Parts, Wish
    from backends.speed import Speed
    from server.memory.estimator import Estimate
    from server.memory.speeds import SpeedEstimate
    from server.settings.catalog import CatalogEntry

MOST_ALTERNATIVES: Final = 6


@dataclass(frozen=True)
class WishChange:
    """What the question wants otherwise than configured; None leaves it."""

    context: int | None = None
    parallel: int | None = None
    kv_type: KvTypes | None = None
    expert_layers: int | None = None
    ffn_layers: int | None = None

    @property
    def options(self) -> dict[str, int]:
        """What only some backends have, by the names of a model's table."""
        named = {name: getattr(self, name) for name in ("expert_layers", "ffn_layers")}
        return {name: value for name, value in named.items() if value is not None}

    def of(self, entry: CatalogEntry) -> CatalogEntry:
        """The model as if its table had them. Raises HeaderError where its files cannot be loaded so."""
        if not self.options:
            return entry
        for name in self.options:
            if (why := not_of(entry.backend).get(name)) is not None:
                raise HeaderError(f"{name}: {entry.path.name} is {BACKENDS[entry.backend].files}, {why}")
        if entry.config.gpu_layers == 0 and any(self.options.values()):
            kept = " and ".join(self.options)
            raise HeaderError(f"{kept} keeps a part of layers from the card, and gpu_layers = 0 keeps them whole")
        return dataclasses.replace(entry, config=entry.config.with_keys(**self.options))

    def over(self, wish: Wish) -> Wish:
        """The wish with these in their places: what was asked for is not changed any more."""
        named = {name for name in ("parallel", "kv_type") if getattr(self, name) is not None}
        return dataclasses.replace(
            wish,
            context=self.context or wish.context,
            parallel=self.parallel or wish.parallel,
            kv_type=self.kv_type or wish.kv_type,
            open=frozenset(name for name in wish.open if name not in named),
        )


class PlanStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration; null for what its sort of model has not."""

    context: int | None = None
    parallel: int | None = None
    """Requests at once; of a model that gives vectors or scores what its engine takes, which costs no memory."""
    kv_type: str | None = None
    gpu_layers: int | None = None
    """Layers on the card, the output layer counted; 0 on the CPU."""
    kv_tokens: int | None = None
    """Of a KV pool that all sequences share; 0: each has cells for a whole context."""
    further: dict[str, Figure] | msgspec.UnsetType = msgspec.UNSET
    """What only some kinds of model have, by the names of their backend; absent where there is nothing."""


class Alternative(PlanStatus, frozen=True, kw_only=True):
    """A configuration that fits, and what it takes."""

    total_bytes: int
    """Of the memory in which the model computes."""
    speed: SpeedStatus | None = None
    """As the plan's own."""


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
    context_max: int | None = None
    """What the plan's context may grow to, by what is usable now; of a fixed one what it is."""
    device: SideStatus | None = None
    """The card's memory; None on a machine without one."""
    host: SideStatus | None = None
    """Host memory."""
    speed: SpeedStatus | None = None
    """What one request alone would get; None where it is not foretold."""
    notes: list[str] = []
    """Adapters of the model's table that are not served, and what else it asks for in vain on this machine."""


def capacity_of(
    name: str,
    header: Header,
    wish: Wish,
    estimate: Callable[[LoadPlan], Estimate],
    *,
    budget: Amount,
    free: Amount,
    most: Amount | None = None,
    residents: Sequence[Candidate] = (),
    speed: Callable[[LoadPlan], SpeedEstimate | None] = lambda _plan: None,
    notes: Sequence[str] = (),
) -> Capacity:
    """What a load of the model would come to; `residents` are the others that may leave, `free` what is free.

    `most`: what the budget was at most, or is at another hour; None: no more than now. A model that is resident counts
    as free, because it would be loaded in its own place. `notes` are told behind those on adapters.
    """

    def footprint_of(plan: LoadPlan) -> Footprint:
        return estimate(plan).footprint

    def speed_of(plan: LoadPlan) -> Speed | None:
        told = speed(plan)
        return None if told is None else told.speed

    def speed_told(plan: LoadPlan) -> SpeedStatus | None:
        told = speed(plan)
        return None if told is None else told.status

    def as_loaded(other: LoadPlan) -> LoadPlan:
        """What a load would take for its context, sequences and cache: whole layers leave the card last."""
        if not isinstance(other, GeneratorPlan) or other.device == "cpu" or other.kv_tokens:
            return other
        asked = WishChange(context=other.context, parallel=other.parallel, kv_type=other.kv_type).over(wish)
        asked = dataclasses.replace(asked, open=frozenset())
        found = place(name, header, asked, budget=budget, free=usable, estimate=footprint_of, speed=speed_of)
        return found.plan if isinstance(found, Placed) else other

    choices = backend_of(header).choices
    usable = (free + freed_by(residents)).at_most(budget)
    placed = place(name, header, wish, budget=most or budget, free=usable, estimate=footprint_of, speed=speed_of)
    fits = isinstance(placed, Placed)
    plan = placed.plan if isinstance(placed, Placed) else _nearest(header, wish, usable, footprint_of)
    footprint = footprint_of(plan)
    leaving = choose(residents, footprint.amount - free) if fits else None
    found = choices.others(header, plan, usable, footprint_of, fits=fits)[:MOST_ALTERNATIVES]
    others = [other for other in dict.fromkeys(map(as_loaded, found)) if other != plan]
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
        plan=PlanStatus(**_by_field(choices.figures(header, plan))),
        would_evict=sorted(candidate.name for candidate in leaving or ()),
        alternatives=[
            Alternative(
                **_by_field(choices.figures(header, other)),
                total_bytes=footprint_of(other).on(other.device).total_bytes,
                speed=speed_told(other),
            )
            for other in others
        ],
        reason=placed.message if isinstance(placed, Refused) else None,
        gives=header.gives,
        trained_context=header.n_ctx_train or None,
        context_max=longest_context(header, wish, usable, footprint_of) if fits else None,
        device=device,
        host=host,
        speed=speed_told(plan),
        notes=[*foreign.plain(adapters.remarks(header.adapters)), *notes],
    )


def _by_field(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """Figures that `PlanStatus` has a field for, and the others."""
    known = {name: value for name, value in figures.items() if name in PlanStatus.__struct_fields__}
    further = {name: value for name, value in figures.items() if name not in known}
    return {**known, "further": further} if further else known


def _nearest(header: Header, wish: Wish, room: Amount, footprint_of: Callable[[LoadPlan], Footprint]) -> LoadPlan:
    """Of plans that do not fit the one that lacks least."""
    plans: Iterator[LoadPlan] = backend_of(header).plans(header, wish)
    return min(plans, key=lambda plan: (footprint_of(plan).amount - room).no_less_than_none().total_bytes)


def _side(parts: Parts, budget_bytes: int, free_bytes: int) -> SideStatus:
    return SideStatus(parts.by_name, parts.total_bytes, budget_bytes, free_bytes)
