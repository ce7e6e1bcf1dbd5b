"""What can be chosen of the plans of models that read text: context, sequences, KV cache, layers on the card. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

from msgspec.structs import replace

from backends.messages import EncoderPlan, GeneratorPlan
from backends.plan import JOBS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from backends.backend import Header
    from backends.messages import Figure, TextPlan
    from backends.plan import Amount, Footprint

_CONTEXT_STEP: Final = 256
_LEAST_CONTEXT: Final = 512


class TextChoices:
    """See `backends.choices.Choices`."""

    def figures(self, header: Header, plan: TextPlan) -> Mapping[str, Figure]:
        """An encoder's jobs share no cache: it takes as many as its engine does."""
        match plan:
            case GeneratorPlan():
                return {
                    "context": plan.context,
                    "parallel": plan.parallel,
                    "kv_type": plan.kv_type,
                    "gpu_layers": _n_layers(header, plan),
                    "kv_tokens": plan.kv_tokens,
                    **({"expert_layers": plan.expert_layers} if plan.expert_layers else {}),
                    **({"ffn_layers": plan.ffn_layers} if plan.ffn_layers else {}),
                    **({"kv_offload": plan.kv_offload} if plan.kv_on_host else {}),
                }
            case EncoderPlan():
                return {"context": plan.context, "parallel": JOBS_AT_ONCE, "gpu_layers": _n_layers(header, plan)}
            case _:
                assert_never(plan)

    def others(
        self, header: Header, plan: TextPlan, room: Amount, footprint_of: Callable[[TextPlan], Footprint], *, fits: bool
    ) -> Sequence[TextPlan]:
        """The longest context first.

        Nothing that is no more than the plan, where that fits, or than another one with the cache that was asked for.
        """
        found: list[tuple[TextPlan, int]] = []
        for other in _variants(header, plan, footprint_of):
            context = largest_context(other, room, footprint_of)
            best = replace(other, context=context)
            if context < _LEAST_CONTEXT or best == plan:
                continue
            if (fits and _covers(plan, best)) or any(_covers(better, best) for better, _ in found):
                continue
            found.append((best, footprint_of(best).on(best.device).total_bytes))
        found.sort(key=lambda one: (-one[0].context, -_parallel(one[0]), one[1]))
        return [best for best, _ in found]

    def instead(self, plan: TextPlan, room: Amount, footprint_of: Callable[[TextPlan], Footprint]) -> Sequence[str]:
        """The largest that would fit, in the order an operator would rather give things up."""

        def fits(other: TextPlan) -> bool:
            return footprint_of(other).amount.within(room)

        context = largest_context(plan, room, footprint_of)
        shorter = [f"context {context}"] if context else []
        if isinstance(plan, EncoderPlan):
            return shorter
        smaller_cache = plan.kv_type != "q8_0" and fits(replace(plan, kv_type="q8_0"))
        found = [*(["kv_type q8_0"] if smaller_cache else []), *shorter]
        if plan.parallel > 1 and fits(replace(plan, parallel=1)):
            found.append("parallel 1")
        smallest = replace(plan, parallel=1, kv_type="q8_0")
        if not found and (context := largest_context(smallest, room, footprint_of)):
            found.append(f"context {context} with parallel 1 and kv_type q8_0")
        return found


def largest_context(plan: TextPlan, room: Amount, footprint_of: Callable[[TextPlan], Footprint]) -> int:
    """The longest context of a plan that fits into the room, in steps of 256; 0 when none does."""
    low, high = 0, plan.context // _CONTEXT_STEP
    while low < high:
        middle = (low + high + 1) // 2
        shorter = _with_context(plan, middle * _CONTEXT_STEP)
        low, high = (middle, high) if footprint_of(shorter).amount.within(room) else (low, middle - 1)
    return low * _CONTEXT_STEP


def _with_context(plan: TextPlan, context: int) -> TextPlan:
    """The same for requests of another length; a pool is no larger than all of them."""
    match plan:
        case GeneratorPlan():
            return replace(plan, context=context, kv_tokens=min(plan.kv_tokens, context * plan.parallel))
        case EncoderPlan():
            return replace(plan, context=context)
        case _:
            assert_never(plan)


def _covers(better: TextPlan, other: TextPlan) -> bool:
    return better.context >= other.context and _parallel(better) >= _parallel(other)


def _variants(header: Header, plan: TextPlan, footprint_of: Callable[[TextPlan], Footprint]) -> Iterator[TextPlan]:
    """Plans whose longest context is worth knowing, the cache that was asked for before a smaller one."""
    longest: TextPlan = replace(plan, context=max(header.n_ctx_train, plan.context))
    if isinstance(longest, GeneratorPlan):
        longest = replace(longest, kv_tokens=0)
        smaller = replace(longest, kv_type="q8_0")
        kv_types = [longest.kv_type]
        if footprint_of(smaller).amount.total_bytes < footprint_of(longest).amount.total_bytes:
            kv_types.append("q8_0")
        for kv_type in kv_types:
            for parallel in dict.fromkeys((2 * longest.parallel, longest.parallel, 1)):
                yield replace(longest, parallel=parallel, kv_type=kv_type)
    else:
        yield longest
    if plan.device == "cuda":
        for n_layers in range(header.n_layers, 0, -max(1, header.n_layers // 4)):
            yield replace(longest, gpu_layers=n_layers)


def _parallel(plan: TextPlan) -> int:
    return plan.parallel if isinstance(plan, GeneratorPlan) else JOBS_AT_ONCE


def _n_layers(header: Header, plan: TextPlan) -> int:
    if plan.device == "cpu":
        return 0
    return header.n_layers + 1 if plan.gpu_layers < 0 else plan.gpu_layers
