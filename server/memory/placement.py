"""How to load a model into the bytes that can be had, or the arithmetic of why it cannot be. Pure.

Other models leave before anything the operator left open is made smaller: what can be had is the budget without pinned
models, not what happens to be free. So a model's configuration does not depend on the moment it is loaded in.
A plan fits where both memories have room for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from backends.plan import Amount
from backends.registry import backend_of
from server.scheduling.budget import Refused
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.backend import Header
    from backends.messages import Device, LoadPlan
    from backends.plan import Footprint, Parts, Wish
    from backends.speed import Speed

_MOST_HINTS: Final = 2
_CLEARLY: Final = 0.97
"""Another plan is taken where its turn takes less than this share: smaller differences are in no estimate."""
_CONTEXT_STEP: Final = 1024


@dataclass(frozen=True)
class Placed:
    """The chosen plan and its footprint."""

    plan: LoadPlan
    footprint: Footprint


def place(
    name: str,
    header: Header,
    wish: Wish,
    *,
    budget: Amount,
    free: Amount,
    estimate: Callable[[LoadPlan], Footprint] | None = None,
    speed: Callable[[LoadPlan], Speed | None] | None = None,
    smaller_by: int = 0,
) -> Placed | Refused:
    """The first acceptable plan that fits into what is free, by the given estimates or else by those of the header.

    Of plans that give up no more than it the fastest is taken. So many plans are passed over as loads have run out of
    memory; the last one is tried again.
    """
    backend = backend_of(header)
    if (why := header.forbids(wish.kv_type)) is not None:
        return Refused("cannot_fit", f"{name}: {why}")
    ask = estimate or (lambda plan: backend.estimate(header, plan))
    nearest, least = None, (True, 0)
    fitting = []
    for plan in backend.plans(header, wish):
        placed = Placed(plan, ask(plan))
        missing = (placed.footprint.amount - free).no_less_than_none()
        if not missing:
            fitting.append(placed)
            if len(fitting) > smaller_by:
                return placed if smaller_by or speed is None else _fastest(header, wish, placed, free, ask, speed)
        else:
            lacks = (not placed.footprint.amount.within(budget), missing.total_bytes)
            if nearest is None or lacks < least:
                nearest, least = placed, lacks
    if fitting:
        return fitting[-1]
    assert nearest is not None
    need = f"{name} needs {sums(nearest)}"
    if nearest.footprint.amount.within(budget):
        return Refused("memory_busy", f"{need}, {_free_words(nearest, free, budget)}: others hold the rest")
    instead = backend.choices.instead(nearest.plan, budget, ask)[:_MOST_HINTS]
    hint = f"{' or '.join(instead)} fits" if instead else "take a smaller model, or one of fewer bits per weight"
    return Refused("cannot_fit", f"{need}, {_usable_words(nearest, budget)}. hint: {hint}")


def _fastest(
    header: Header,
    wish: Wish,
    first: Placed,
    free: Amount,
    ask: Callable[[LoadPlan], Footprint],
    speed: Callable[[LoadPlan], Speed | None],
) -> Placed:
    """Of the plan and those that give up no more the one whose turn takes the fewest seconds; it wins where alike."""
    speeds = backend_of(header).speeds
    own = speed(first.plan)
    if speeds is None or own is None:
        return first
    best, best_s = first.plan, own.turn_s * _CLEARLY
    for plan in speeds.alike(header, wish, first.plan, lambda other: ask(other).amount.within(free)):
        told = speed(plan)
        if told is not None and told.turn_s < best_s:
            best, best_s = plan, told.turn_s
    return first if best == first.plan else Placed(best, ask(best))


def longest_context(
    header: Header, wish: Wish, free: Amount, estimate: Callable[[LoadPlan], Footprint] | None = None
) -> int | None:
    """Tokens of the longest context with which any plan fits into what is free, in steps of `_CONTEXT_STEP` above where
    an open context begins; of a fixed one what it is. None of a model that reads no text.
    """
    backend = backend_of(header)
    most = backend.longest_context(header, wish.context)
    if most is None or wish.context is not None or header.gives != "text":
        return most
    ask = estimate or (lambda plan: backend.estimate(header, plan))
    most = most if wish.context_max is None else min(most, wish.context_max)

    def fits(context: int) -> bool:
        plans = backend.plans(header, replace(wish, context=context))
        return any(ask(plan).amount.within(free) for plan in plans)

    if fits(most):
        return most
    low, high = 0, most // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * _CONTEXT_STEP) else (low, middle - 1)
    return low * _CONTEXT_STEP or None


def sums(placed: Placed) -> str:
    """A plan and its footprint by component, for people."""
    plan, footprint = placed.plan, placed.footprint
    shape = f" at {plan.words}" if plan.words else ""
    if plan.device == "cpu":
        return f"{_sum(footprint.host)}{shape}"
    return f"{_sum(footprint.device)} on the card and {_sum(footprint.host)} of host memory{shape}"


def memory_words(device: Device, amount: Amount) -> str:
    """`5.1 GiB`, or `5.1 GiB on the card and 300 MiB of host memory`."""
    if device == "cpu":
        return format_size(amount.host)
    return f"{format_size(amount.device)} on the card and {format_size(amount.host)} of host memory"


def _sum(parts: Parts) -> str:
    named = " + ".join(f"{name} {format_size(n)}" for name, n in parts.by_name.items() if n)
    return f"{format_size(parts.total_bytes)} ({named})"


def _free_words(placed: Placed, free: Amount, budget: Amount) -> str:
    """`1.2 GiB of 8 GiB are free`, of the memories that are short."""
    sides = [
        f"{format_size(has)} of {format_size(of)}{where}"
        for needs, has, of, where in _sides(placed, free, budget)
        if needs > has
    ]
    return f"{' and '.join(sides)} are free"


def _usable_words(placed: Placed, budget: Amount) -> str:
    """`8 GiB usable`, of the memories whose budget is too small."""
    sides = [f"{format_size(has)}{where}" for needs, has, _, where in _sides(placed, budget, budget) if needs > has]
    return f"{' and '.join(sides)} usable"


def _sides(placed: Placed, room: Amount, budget: Amount) -> list[tuple[int, int, int, str]]:
    """Of each memory there is: what is needed, what is there, the budget, and how it is called."""
    need = placed.footprint.amount
    if placed.plan.device == "cpu":
        return [(need.host, room.host, budget.host, "")]
    return [
        (need.device, room.device, budget.device, " on the card"),
        (need.host, room.host, budget.host, " of host memory"),
    ]
