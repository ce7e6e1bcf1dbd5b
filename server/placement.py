"""How to load a model into what is free, or the arithmetic of why it cannot be. Pure.

Eviction joins here: `free_bytes` grows by what may leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from backends.footprint import ALL_LAYERS, Device, Footprint, HeaderInfo, Plan, predict
from backends.messages import KvType
from server.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTO_CONTEXT: Final = 8192
LEAST_AUTO_CONTEXT: Final = 2048


@dataclass(frozen=True)
class Wish:
    """What the configuration asks for; None means choose."""

    context: int | None
    parallel: int
    kv_type: KvType
    gpu_layers: int | None
    device: Device


@dataclass(frozen=True)
class Placed:
    """The chosen plan and its price."""

    plan: Plan
    footprint: Footprint


@dataclass(frozen=True)
class Refused:
    """Why not: `cannot_fit` for ever, `memory_busy` as long as others hold the memory."""

    code: Literal["cannot_fit", "memory_busy"]
    message: str


def place(
    name: str,
    header: HeaderInfo,
    wish: Wish,
    *,
    budget_bytes: int,
    free_bytes: int,
    price: Callable[[Plan], Footprint] | None = None,
) -> Placed | Refused:
    """The first acceptable plan that fits into the free bytes, at the given prices or else at those of the header."""
    ask = price or (lambda plan: predict(header, plan))
    priced = [Placed(plan, ask(plan)) for plan in _plans(header, wish)]
    for placed in priced:
        if placed.footprint.total_bytes <= free_bytes:
            return placed
    smallest = min(priced, key=lambda placed: placed.footprint.total_bytes)
    need = f"{name} needs {_sums(smallest)}"
    if smallest.footprint.total_bytes <= budget_bytes:
        usable = f"{format_size(free_bytes)} of {format_size(budget_bytes)} are free"
        return Refused("memory_busy", f"{need}, {usable}: other models hold the rest")
    hint = _hint(smallest.plan, budget_bytes, ask)
    return Refused("cannot_fit", f"{need}, {format_size(budget_bytes)} usable.{hint}")


def longest_context(header: HeaderInfo | None, context: int | None) -> int:
    """The most tokens a request to the model can ever use."""
    if context is not None:
        return context
    trained = header.n_ctx_train if header is not None else 0
    return min(trained, AUTO_CONTEXT) if trained > 0 else AUTO_CONTEXT


def _plans(header: HeaderInfo, wish: Wish) -> Iterator[Plan]:
    """Acceptable plans, best first: a shorter context is better than layers on the CPU."""
    layers = 0 if wish.device == "cpu" else ALL_LAYERS if wish.gpu_layers is None else wish.gpu_layers
    contexts = [longest_context(header, wish.context)]
    while wish.context is None and contexts[-1] // 2 >= LEAST_AUTO_CONTEXT:
        contexts.append(contexts[-1] // 2)
    best = Plan(contexts[0], wish.parallel, wish.kv_type, layers, wish.device)
    for context in contexts:
        yield replace(best, context=context)
    if wish.device == "cuda" and wish.gpu_layers is None:
        for n_layers in range(header.n_layers, 0, -1):
            yield replace(best, context=contexts[-1], gpu_layers=n_layers)


def _sums(placed: Placed) -> str:
    parts = " + ".join(f"{name} {format_size(n)}" for name, n in placed.footprint.parts.items() if n)
    return f"{format_size(placed.footprint.total_bytes)} ({parts}) at context {placed.plan.context}"


def _hint(plan: Plan, budget_bytes: int, price: Callable[[Plan], Footprint]) -> str:
    """What would fit, in the order an operator would rather give things up."""
    options: list[tuple[str, Plan]] = [("kv_type q8_0", replace(plan, kv_type="q8_0"))]
    context = plan.context // 2
    while context >= 512:
        options.append((f"context {context}", replace(plan, context=context)))
        context //= 2
    options.append(("parallel 1", replace(plan, parallel=1)))
    fitting = [text for text, p in options if price(p).total_bytes <= budget_bytes]
    return f" hint: {' or '.join(fitting[:2])} fits" if fitting else ""
