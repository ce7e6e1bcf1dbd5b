"""The plans of a model that reads tokens, best first. Pure; what only some kinds of model have is an argument."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from backends.messages import EncoderPlan, GeneratorPlan
from backends.messages.plans import ALL_LAYERS, whole_blocks
from backends.plan import AUTO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backends.messages import KvTypes
    from backends.plan import Wish

AUTO_INPUT: Final = 2048
"""For models that read each input in one pass: their buffers grow with the longest."""
LEAST_AUTO_CONTEXT: Final = 2048


def first_plan(wish: Wish, *, context: int, kv_type: KvTypes) -> GeneratorPlan:
    """Everything as wished; what was left open at its best."""
    return GeneratorPlan(context, wish.parallel, kv_type, _layers(wish), device=wish.device)


def encoder_plans(wish: Wish, *, context: int) -> Iterator[EncoderPlan]:
    """Of an embedding model or a reranker: as wished, then shorter inputs where their length was left open."""
    yield EncoderPlan(context, _layers(wish), device=wish.device)
    while wish.context is None and context // 2 >= LEAST_AUTO_CONTEXT:
        context //= 2
        yield EncoderPlan(context, _layers(wish), device=wish.device)


def _layers(wish: Wish) -> int:
    return 0 if wish.device == "cpu" else ALL_LAYERS if wish.gpu_layers is None else wish.gpu_layers


def smaller_plans(plan: GeneratorPlan, wish: Wish, *, has_pool: bool, takes_q8_0: bool) -> Iterator[GeneratorPlan]:
    """The plan and smaller ones: a smaller KV pool, less parallel, 8 bits of KV, a shorter context.

    Sequences that share a pool are as many as those with cells of their own, only not all of them at full length.
    """
    if has_pool and wish.kv_tokens is not None and wish.kv_tokens < plan.context * plan.parallel:
        plan = replace(plan, context=min(plan.context, wish.kv_tokens), kv_tokens=wish.kv_tokens)
    yield plan
    if has_pool and wish.kv_tokens is None:
        for kv_tokens in _smaller_pools(plan):
            plan = replace(plan, kv_tokens=kv_tokens)
            yield plan
    while "parallel" in wish.open and plan.parallel > 1:
        plan = replace(plan, parallel=plan.parallel // 2)
        plan = replace(plan, kv_tokens=plan.kv_tokens if plan.kv_tokens < plan.context * plan.parallel else 0)
        yield plan
    if "kv_type" in wish.open and takes_q8_0 and plan.kv_type in ("f32", "f16", "bf16"):
        plan = replace(plan, kv_type="q8_0")
        yield plan
    while wish.context is None and (shorter := _shorter(plan.context, wish.least_context)):
        kv_tokens = max(shorter, plan.kv_tokens * shorter // plan.context) if plan.kv_tokens else 0
        plan = replace(plan, context=shorter, kv_tokens=kv_tokens if wish.kv_tokens is None else plan.kv_tokens)
        yield plan


def _shorter(context: int, least: int) -> int:
    """Half of it; where a request needs more than that, as much as it needs; 0 where there is nothing shorter."""
    if context // 2 >= max(LEAST_AUTO_CONTEXT, least):
        return context // 2
    return whole_blocks(least) if least and whole_blocks(least) < context else 0


def _smaller_pools(plan: GeneratorPlan) -> Iterator[int]:
    """Sizes of a pool between all contexts and one, each three quarters of the one before."""
    kv_tokens = plan.context * plan.parallel
    while kv_tokens > plan.context:
        kv_tokens = max(plan.context, kv_tokens * 3 // 4)
        yield kv_tokens


def longest_input(context: int | None, *, trained: int, most: int) -> int:
    """Tokens of one input of an embedding model or a reranker: `context`, for `auto` (None) up to `most`.

    Nothing beyond the trained length works at all.
    """
    asked = most if context is None else context
    return min(asked, trained) if trained > 0 else asked


def longest_context(context: int | None, *, trained: int) -> int:
    """The most tokens a request can ever use: `context`, or for `auto` (None) what the model was trained for."""
    return context if context is not None else trained or AUTO_CONTEXT


def context_to_load(wish: Wish, *, trained: int) -> int:
    """The context of the best plan: as asked for; left open it begins at `AUTO_CONTEXT`, and is doubled until it holds
    what has to be held, never beyond the most.
    """
    if wish.context is not None:
        return wish.context
    most = trained or AUTO_CONTEXT
    most = most if wish.context_max is None else min(most, wish.context_max)
    context = AUTO_CONTEXT
    while context < wish.least_context:
        context *= 2
    return min(context, most)


def takes_q8_0(*head_sizes: int) -> bool:
    """Whether keys and values of heads of these sizes divide into blocks of 32."""
    return all(size > 0 and size % 32 == 0 for size in head_sizes)
