"""How to load a model into the bytes that can be had, or the arithmetic of why it cannot be. Pure.

Other models leave before anything the operator left open is made smaller: what can be had is the budget without pinned
models, not what happens to be free. So a model's configuration does not depend on the moment it is loaded in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from backends.registry import backend_of
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.backend import Header
    from backends.plan import Footprint, LoadPlan, Wish

_CONTEXT_STEP: Final = 256


@dataclass(frozen=True)
class Placed:
    """The chosen plan and its price."""

    plan: LoadPlan
    footprint: Footprint


@dataclass(frozen=True)
class Refused:
    """Why not: `cannot_fit` for ever, `memory_busy` as long as others hold the memory."""

    code: Literal["cannot_fit", "memory_busy"]
    message: str


def place(
    name: str,
    header: Header,
    wish: Wish,
    *,
    budget_bytes: int,
    free_bytes: int,
    price: Callable[[LoadPlan], Footprint] | None = None,
    smaller_by: int = 0,
) -> Placed | Refused:
    """The first acceptable plan that fits into the free bytes, at the given prices or else at those of the header.

    So many plans are passed over as loads have run out of memory; the last one is tried again.
    """
    backend = backend_of(header)
    ask = price or (lambda plan: backend.estimate(header, plan))
    smallest = None
    fitting = []
    for plan in backend.plans(header, wish):
        placed = Placed(plan, ask(plan))
        if placed.footprint.total_bytes <= free_bytes:
            fitting.append(placed)
            if len(fitting) > smaller_by:
                return placed
        elif smallest is None or placed.footprint.total_bytes < smallest.footprint.total_bytes:
            smallest = placed
    if fitting:
        return fitting[-1]
    assert smallest is not None
    need = f"{name} needs {sums(smallest)}"
    if smallest.footprint.total_bytes <= budget_bytes:
        usable = f"{format_size(free_bytes)} of {format_size(budget_bytes)} are free"
        return Refused("memory_busy", f"{need}, {usable}: other models hold the rest")
    hint = _hint(smallest.plan, budget_bytes, ask)
    return Refused("cannot_fit", f"{need}, {format_size(budget_bytes)} usable.{hint}")


def sums(placed: Placed) -> str:
    """A plan and its price by component, for people."""
    parts = " + ".join(
        f"{name} {format_size(n)}" for name, n in placed.footprint.on(placed.plan.device).by_name.items() if n
    )
    plan = placed.plan
    pool = f", kv_tokens {plan.kv_tokens}" if plan.kv_tokens else ""
    shape = f"context {plan.context}, parallel {plan.parallel}, kv_type {plan.kv_type}{pool}"
    return f"{format_size(placed.footprint.total_bytes)} ({parts}) at {shape}"


def largest_context(plan: LoadPlan, n_bytes: int, price: Callable[[LoadPlan], Footprint]) -> int:
    """The longest context of a plan that fits into the bytes, in steps of 256; 0 when none does."""
    low, high = 0, plan.context // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        context = middle * _CONTEXT_STEP
        shorter = replace(plan, context=context, kv_tokens=min(plan.kv_tokens, context * plan.parallel))
        fits = price(shorter).total_bytes <= n_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * _CONTEXT_STEP


def _hint(plan: LoadPlan, budget_bytes: int, price: Callable[[LoadPlan], Footprint]) -> str:
    """The largest that would fit, in the order an operator would rather give things up."""
    options: list[str] = []
    if plan.kv_type != "q8_0" and price(replace(plan, kv_type="q8_0")).total_bytes <= budget_bytes:
        options.append("kv_type q8_0")
    if context := largest_context(plan, budget_bytes, price):
        options.append(f"context {context}")
    if plan.parallel > 1 and price(replace(plan, parallel=1)).total_bytes <= budget_bytes:
        options.append("parallel 1")
    if not options and (context := largest_context(replace(plan, parallel=1, kv_type="q8_0"), budget_bytes, price)):
        options.append(f"context {context} with parallel 1 and kv_type q8_0")
    return f" hint: {' or '.join(options[:2])} fits" if options else ""
