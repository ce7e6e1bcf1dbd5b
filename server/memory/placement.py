"""How to load a model into the bytes that can be had, or the arithmetic of why it cannot be. Pure.

Other models leave before anything the operator left open is made smaller: what can be had is the budget without pinned
models, not what happens to be free. So a model's configuration does not depend on the moment it is loaded in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from backends.footprint import ALL_LAYERS, Device, Footprint, HeaderInfo, ModelHeader, Plan, kv_type_of, predict
from backends.messages import KvType
from server.settings.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AUTO_CONTEXT: Final = 8192
AUTO_INPUT: Final = 2048
"""For models that read each input in one pass: their buffers grow with the longest."""
LEAST_AUTO_CONTEXT: Final = 2048
_CONTEXT_STEP: Final = 256


@dataclass(frozen=True)
class Wish:
    """What the configuration asks for; None means choose."""

    context: int | None
    parallel: int
    kv_type: KvType
    gpu_layers: int | None
    device: Device
    open: frozenset[Literal["parallel", "kv_type"]] = frozenset()
    """Values that nobody asked for: the plan may take fewer sequences, or a KV cache of 8 bits."""
    kv_tokens: int | None = None
    """Of the KV pool; None: context x parallel, less where memory is short, never below one context."""


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
    header: ModelHeader,
    wish: Wish,
    *,
    budget_bytes: int,
    free_bytes: int,
    price: Callable[[Plan], Footprint] | None = None,
    setbacks: int = 0,
) -> Placed | Refused:
    """The first acceptable plan that fits into the free bytes, at the given prices or else at those of the header.

    So many plans are passed over as loads have run out of memory; the last one is tried again.
    """
    ask = price or (lambda plan: predict(header, plan))
    smallest = None
    fitting = []
    for plan in plans(header, wish):
        placed = Placed(plan, ask(plan))
        if placed.footprint.total_bytes <= free_bytes:
            fitting.append(placed)
            if len(fitting) > setbacks:
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


def longest_context(header: ModelHeader | None, context: int | None) -> int:
    """The most tokens a request to the model can ever use."""
    pooled = header is not None and header.gives != "text"
    trained = header.n_ctx_train if header is not None else 0
    if context is not None:
        return min(context, trained) if pooled and trained > 0 else context
    most = AUTO_INPUT if isinstance(header, HeaderInfo) and header.wants_whole_inputs else AUTO_CONTEXT
    return min(trained, most) if trained > 0 else most


def plans(header: ModelHeader, wish: Wish) -> Iterator[Plan]:
    """Acceptable plans, best first: a smaller pool, less parallel, 8 bits of KV, a shorter context, layers on the CPU.

    Sequences that share a pool are as many as those with cells of their own, only not all of them at full length.
    """
    layers = 0 if wish.device == "cpu" else ALL_LAYERS if wish.gpu_layers is None else wish.gpu_layers
    kv_type = kv_type_of(header, wish.kv_type, wish.device)
    plan = Plan(longest_context(header, wish.context), wish.parallel, kv_type, layers, wish.device)
    pools = has_pool(header)
    if pools and wish.kv_tokens is not None and wish.kv_tokens < plan.context * plan.parallel:
        plan = replace(plan, context=min(plan.context, wish.kv_tokens), kv_tokens=wish.kv_tokens)
    yield plan
    if pools and wish.kv_tokens is None:
        for kv_tokens in _smaller_pools(plan):
            plan = replace(plan, kv_tokens=kv_tokens)
            yield plan
    while "parallel" in wish.open and plan.parallel > 1:
        plan = replace(plan, parallel=plan.parallel // 2)
        plan = replace(plan, kv_tokens=plan.kv_tokens if plan.kv_tokens < plan.context * plan.parallel else 0)
        yield plan
    if "kv_type" in wish.open and _takes_q8_0(header) and plan.kv_type in ("f32", "f16", "bf16"):
        plan = replace(plan, kv_type="q8_0")
        yield plan
    while wish.context is None and plan.context // 2 >= LEAST_AUTO_CONTEXT:
        shorter = plan.context // 2
        kv_tokens = max(shorter, plan.kv_tokens // 2) if plan.kv_tokens else 0
        plan = replace(plan, context=shorter, kv_tokens=kv_tokens if wish.kv_tokens is None else plan.kv_tokens)
        yield plan
    if wish.device == "cuda" and wish.gpu_layers is None and isinstance(header, HeaderInfo):
        for n_layers in range(header.n_layers, 0, -1):
            yield replace(plan, gpu_layers=n_layers)


def has_pool(header: ModelHeader) -> bool:
    """Whether sequences of this model can share a pool of KV cells."""
    if isinstance(header, HeaderInfo):
        return header.gives == "text" and header.number("attention.head_count") > 0
    return True


def _smaller_pools(plan: Plan) -> Iterator[int]:
    """Sizes of a pool between all contexts and one, each three quarters of the one before."""
    kv_tokens = plan.context * plan.parallel
    while kv_tokens > plan.context:
        kv_tokens = max(plan.context, kv_tokens * 3 // 4)
        yield kv_tokens


def _takes_q8_0(header: ModelHeader) -> bool:
    """Whether the heads divide into blocks of 32."""
    head_size = header.number("embedding_length") // max(header.number("attention.head_count", 1), 1)
    sizes = (header.number(f"attention.{part}_length", head_size) for part in ("key", "value"))
    return all(size > 0 and size % 32 == 0 for size in sizes)


def sums(placed: Placed) -> str:
    """A plan and its price by component, for people."""
    parts = " + ".join(f"{name} {format_size(n)}" for name, n in placed.footprint.parts.items() if n)
    plan = placed.plan
    pool = f", kv_tokens {plan.kv_tokens}" if plan.kv_tokens else ""
    shape = f"context {plan.context}, parallel {plan.parallel}, kv_type {plan.kv_type}{pool}"
    return f"{format_size(placed.footprint.total_bytes)} ({parts}) at {shape}"


def largest_context(plan: Plan, n_bytes: int, price: Callable[[Plan], Footprint]) -> int:
    """The longest context of a plan that fits into the bytes, in steps of 256; 0 when none does."""
    low, high = 0, plan.context // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        context = middle * _CONTEXT_STEP
        shorter = replace(plan, context=context, kv_tokens=min(plan.kv_tokens, context * plan.parallel))
        fits = price(shorter).total_bytes <= n_bytes
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * _CONTEXT_STEP


def _hint(plan: Plan, budget_bytes: int, price: Callable[[Plan], Footprint]) -> str:
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
