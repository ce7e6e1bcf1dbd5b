"""The plan without the load: what it takes, who leaves, what else would fit."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from backends.messages import LoadPlan
from backends.messages.plans import ALL_LAYERS
from backends.plan import Amount, Wish
from backends.registry import estimate
from server.memory.capacity import Capacity, WishChange, capacity_of
from server.memory.estimator import Estimate
from server.scheduling.eviction import Candidate
from tests.gguf.test_offload import GIB, ON_CARD, QWEN3_30B
from tests.present import present
from tests.scheduler.test_placement import HEADER, WISH
from tests.specs import plan_of

HUGE = 2**50


def estimated(plan: LoadPlan) -> Estimate:
    return Estimate(estimate(HEADER, plan), "header")


def ask(
    wish: Wish = WISH, *, budget: int = HUGE, free: int | None = None, residents: tuple[Candidate, ...] = ()
) -> Capacity:
    free = budget if free is None else free
    return capacity_of(
        "m", HEADER, wish, estimated, budget=Amount(host=budget), free=Amount(host=free), residents=residents
    )


def total(**changes: object) -> int:
    return estimate(HEADER, msgspec.structs.replace(plan_of(8192, 2, "f16", 0, "cpu"), **changes)).host.total_bytes


def test_model_that_fits_into_what_is_free_evicts_none() -> None:
    answer = ask(residents=(Candidate("other", Amount(host=10**9), 1.0),))
    assert (answer.fits, answer.would_evict, answer.reason) == (True, [], None)
    assert answer.total_bytes == total() == sum(answer.parts.values())
    assert (answer.plan.context, answer.plan.parallel, answer.plan.gpu_layers) == (8192, 2, 0)


def test_the_cheapest_that_is_enough_would_leave() -> None:
    residents = (Candidate("dear", Amount(host=10**9), 9.0), Candidate("cheap", Amount(host=10**9), 1.0))
    answer = ask(budget=total() + 10**9, free=total() - 10**9, residents=residents)
    assert answer.would_evict == ["cheap"]


def test_model_that_never_fits_is_told_with_its_smallest_plan_and_the_sums() -> None:
    answer = ask(budget=total(context=2048) - 1)
    assert not answer.fits
    assert answer.plan.context == 2048
    assert answer.reason is not None
    assert "needs" in answer.reason
    assert answer.alternatives, "less parallel or 8 bits of KV would fit"
    assert all(other.total_bytes < total(context=2048) for other in answer.alternatives)


def test_alternatives_that_are_no_more_than_the_plan_are_not_told() -> None:
    answer = ask()
    context, parallel = present(answer.plan.context), present(answer.plan.parallel)
    assert all(present(other.context) > context or present(other.parallel) > parallel for other in answer.alternatives)


def test_what_is_asked_for_is_not_cut() -> None:
    asked = WishChange(context=32768, parallel=4, kv_type="q4_0").over(replace(WISH, open=frozenset({"parallel"})))
    answer = ask(asked)
    assert (answer.plan.context, answer.plan.parallel, answer.plan.kv_type) == (32768, 4, "q4_0")
    assert not ask(asked, budget=answer.total_bytes - 1).fits


def test_each_memory_is_told_by_itself_and_what_frees_the_short_one_would_leave() -> None:
    wish = replace(WISH, device="cuda", context=2048)
    need = estimate(HEADER, plan_of(2048, 2, "f16", ALL_LAYERS, "cuda")).amount
    residents = (Candidate("on card", Amount(10**9, 10), 0.1), Candidate("beside", Amount(0, 10**9), 9.0))

    answer = capacity_of(
        "m", HEADER, wish, estimated, budget=Amount(HUGE, HUGE), free=need - Amount(0, 1000), residents=residents
    )

    assert answer.would_evict == ["beside"]
    assert answer.device is not None
    assert answer.host is not None
    assert (answer.device.total_bytes, answer.host.total_bytes) == (need.device, need.host)
    assert (answer.total_bytes, answer.parts) == (need.device, answer.device.parts)
    plain = ask()
    assert plain.device is None
    assert plain.host is not None
    assert plain.host.parts == plain.parts


def test_an_alternative_on_a_card_is_what_a_load_of_it_would_take() -> None:
    """Its experts leave the card, and not half of its layers, which would answer many times slower."""
    room = Amount(int(11.2 * GIB), 24 * GIB)

    def of_moe(plan: LoadPlan) -> Estimate:
        return Estimate(estimate(QWEN3_30B, plan), "header")

    answer = capacity_of("m", QWEN3_30B, ON_CARD, of_moe, budget=room, free=room)

    assert present(answer.alternatives[0].context) > present(answer.plan.context)
    for other in answer.alternatives:
        asked = WishChange(context=other.context, parallel=other.parallel, kv_type=other.kv_type)
        loaded = capacity_of("m", QWEN3_30B, asked.over(ON_CARD), of_moe, budget=room, free=room)
        assert loaded.fits
        assert loaded.plan.gpu_layers == other.gpu_layers
        assert (loaded.plan.further, loaded.total_bytes) == (other.further, other.total_bytes)
