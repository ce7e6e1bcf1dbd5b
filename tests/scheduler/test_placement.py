"""Placement: the first plan that fits, and sums with a way out where none does."""

from __future__ import annotations

import re
from dataclasses import replace

from backends.gguf.info import HeaderInfo, Tensor
from backends.messages import GeneratorPlan, LoadPlan
from backends.messages.plans import ALL_LAYERS
from backends.plan import Amount, Footprint, Wish
from backends.registry import estimate
from server.memory.placement import Placed, place
from server.scheduling.budget import Refused
from tests.specs import plan_of

MIB = 2**20
N_LAYERS = 16
HEADER = HeaderInfo(
    architecture="llama",
    file_bytes=0,
    metadata={
        "llama.block_count": N_LAYERS,
        "llama.context_length": 32768,
        "llama.embedding_length": 2048,
        "llama.feed_forward_length": 8192,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
    },
    array_lengths={"tokenizer.ggml.tokens": 1000},
    longest_token_bytes=8,
    tensors=(
        Tensor("token_embd.weight", (2048, 1000), "F16", 4 * MIB),
        Tensor("output.weight", (2048, 1000), "F16", 4 * MIB),
        *(Tensor(f"blk.{i}.ffn_up.weight", (2048, 8192), "F16", 64 * MIB) for i in range(N_LAYERS)),
    ),
)
WHOLE_LAYERS = replace(HEADER, ffn_layers=0)
"""The operator wants no part of a layer in another memory than the layer."""
HUGE = 2**50
WISH = Wish(context=None, parallel=2, kv_type="f16", gpu_layers=None, device="cpu", kv_tokens=HUGE)
"""Cells for whole contexts are named, so that no pool is chosen."""


def price(wish: Wish = WISH, *, context: int, layers: int = 0) -> int:
    return (
        estimate(HEADER, plan_of(context, wish.parallel, wish.kv_type, layers, wish.device)).on(wish.device).total_bytes
    )


ROOMY = Amount(HUGE, HUGE)


def where(wish: Wish, n_bytes: int) -> Amount:
    """So much of the memory in which the model computes, and plenty of host memory beside a card."""
    return Amount(n_bytes, HUGE) if wish.device == "cuda" else Amount(host=n_bytes)


def place_in(
    free_bytes: int,
    wish: Wish = WISH,
    *,
    budget_bytes: int | None = None,
    more_bytes: int = 0,
    header: HeaderInfo = HEADER,
):
    def dearer(plan: LoadPlan) -> Footprint:
        footprint = estimate(header, plan)
        return replace(footprint, host=replace(footprint.host, runtime=footprint.host.runtime + more_bytes))

    budget = where(wish, free_bytes if budget_bytes is None else budget_bytes)
    return place("m", header, wish, budget=budget, free=where(wish, free_bytes), estimate=dearer)


def planned(placed: Placed) -> GeneratorPlan:
    assert isinstance(placed.plan, GeneratorPlan)
    return placed.plan


def test_price_of_weights_and_kv_is_exact() -> None:
    parts = estimate(HEADER, plan_of(8192, 2, "f16", 0, "cpu")).host

    assert parts.weights == (8 + 64 * N_LAYERS) * MIB
    assert parts.kv == N_LAYERS * 8 * (64 + 64) * 2 * 8192 * 2


def test_quantised_kv_costs_its_blocks() -> None:
    f16 = estimate(HEADER, plan_of(8192, 2, "f16", 0, "cpu")).host.kv
    assert estimate(HEADER, plan_of(8192, 2, "q8_0", 0, "cpu")).host.kv == f16 * 34 // 64


def test_automatic_context_is_8192_at_most() -> None:
    placed = place_in(HUGE)
    assert isinstance(placed, Placed)
    assert placed.plan == plan_of(8192, 2, "f16", 0, "cpu")


def test_automatic_context_is_no_longer_than_the_model_was_trained_for() -> None:
    header = replace(HEADER, metadata={**HEADER.metadata, "llama.context_length": 1024})
    placed = place("m", header, WISH, budget=ROOMY, free=ROOMY)
    assert isinstance(placed, Placed)
    assert planned(placed).context == 1024


def test_automatic_context_is_halved_while_it_does_not_fit() -> None:
    for context in (8192, 4096, 2048):
        placed = place_in(price(context=context))
        assert isinstance(placed, Placed)
        assert planned(placed).context == context
        assert placed.footprint.host.total_bytes == price(context=context)


def test_one_byte_less_than_the_smallest_plan_never_fits() -> None:
    refused = place_in(price(context=2048) - 1)

    assert isinstance(refused, Refused)
    assert refused.code == "cannot_fit"
    assert "weights 1.0 GiB" in refused.message
    assert "at context 2048" in refused.message
    assert "hint: kv_type q8_0 or context 1792 fits" in refused.message


def test_configured_context_is_kept_or_refused() -> None:
    wish = replace(WISH, context=32768)
    placed = place_in(price(wish, context=32768), wish)
    assert isinstance(placed, Placed)
    assert planned(placed).context == 32768

    refused = place_in(price(wish, context=32768) - 1, wish)
    assert isinstance(refused, Refused)
    assert "context 32512 fits" in refused.message


OPEN = replace(WISH, context=4096, parallel=4, open=frozenset({"parallel", "kv_type"}))
STEPS = [(4, "f16"), (2, "f16"), (1, "f16"), (1, "q8_0")]


def cost(wish: Wish, parallel: int, kv_type: str, *, context: int = 4096) -> int:
    return estimate(HEADER, plan_of(context, parallel, kv_type, 0, wish.device)).on(wish.device).total_bytes


def test_what_was_not_asked_for_shrinks_before_a_context_does() -> None:
    for step in STEPS:
        placed = place_in(cost(OPEN, *step), OPEN)
        assert isinstance(placed, Placed)
        assert (planned(placed).context, planned(placed).parallel, planned(placed).kv_type) == (4096, *step)


def test_automatic_context_is_the_last_to_shrink() -> None:
    wish = replace(OPEN, context=None)
    placed = place_in(cost(wish, 1, "q8_0", context=8192) - 1, wish)
    assert isinstance(placed, Placed)
    assert (planned(placed).context, planned(placed).parallel, planned(placed).kv_type) == (4096, 1, "q8_0")


def test_context_that_was_asked_for_is_never_cut() -> None:
    refused = place_in(cost(OPEN, 1, "q8_0") - 1, OPEN)
    assert isinstance(refused, Refused)
    assert refused.code == "cannot_fit"
    assert "context 3840" in refused.message


def test_load_that_ran_out_of_memory_takes_the_next_plan_and_then_the_last_again() -> None:
    taken = [place("m", HEADER, OPEN, budget=ROOMY, free=ROOMY, smaller_by=smaller_by) for smaller_by in range(5)]
    assert [(planned(p).parallel, planned(p).kv_type) for p in taken if isinstance(p, Placed)] == [*STEPS, STEPS[-1]]


def test_memory_that_others_hold_is_busy_and_not_impossible() -> None:
    refused = place_in(100 * MIB, budget_bytes=HUGE)

    assert isinstance(refused, Refused)
    assert refused.code == "memory_busy"
    assert "100 MiB of" in refused.message


def test_given_estimates_count_and_not_the_headers() -> None:
    free = price(context=2048)
    assert isinstance(place_in(free), Placed)
    assert isinstance(place_in(free, more_bytes=1), Refused)


def test_model_goes_partly_to_the_card_when_it_does_not_fit_wholly() -> None:
    wish = replace(WISH, device="cuda")
    full = place_in(HUGE, wish)
    assert isinstance(full, Placed)
    assert planned(full).gpu_layers == ALL_LAYERS

    partly = place_in(price(wish, context=2048, layers=ALL_LAYERS) - 1, wish, header=WHOLE_LAYERS)
    assert isinstance(partly, Placed)
    assert 0 < planned(partly).gpu_layers <= N_LAYERS
    assert planned(partly).context == 2048


def test_layers_the_operator_fixed_are_kept() -> None:
    wish = replace(WISH, device="cuda", gpu_layers=4)
    placed = place_in(HUGE, wish)
    assert isinstance(placed, Placed)
    assert planned(placed).gpu_layers == 4
    assert placed.footprint.device.weights == 3 * 64 * MIB + 4 * MIB  # three blocks and the output


def test_sequences_share_a_pool_where_their_contexts_do_not_fit_side_by_side() -> None:
    wish = replace(WISH, context=4096, parallel=4, kv_tokens=None)
    whole = place_in(HUGE, wish)
    assert isinstance(whole, Placed)
    assert (planned(whole).kv_layout, planned(whole).cells) == ("split", 4 * 4096)

    sizes = [4 * 4096]
    while isinstance(placed := place_in(HUGE if not sizes else _pool_price(wish, sizes[-1]) - 1, wish), Placed):
        assert (planned(placed).context, planned(placed).parallel, planned(placed).kv_layout) == (4096, 4, "unified")
        assert placed.footprint.host.total_bytes < _pool_price(wish, sizes[-1])
        sizes.append(planned(placed).cells)

    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == 4096


def test_a_pool_that_is_named_is_taken_as_it_is_and_holds_one_context_at_least() -> None:
    wish = replace(WISH, context=4096, parallel=4, kv_tokens=6000)

    placed = place_in(HUGE, wish)

    assert isinstance(placed, Placed)
    assert (planned(placed).kv_tokens, planned(placed).cells) == (6000, 6144)
    assert isinstance(place_in(placed.footprint.host.total_bytes - 1, wish), Refused)
    shorter = place_in(HUGE, replace(wish, context=None, kv_tokens=3000))
    assert isinstance(shorter, Placed)
    assert (planned(shorter).context, planned(shorter).cells) == (3000, 3072)


def _pool_price(wish: Wish, kv_tokens: int) -> int:
    whole = kv_tokens == 4096 * wish.parallel
    plan = plan_of(4096, wish.parallel, wish.kv_type, 0, wish.device, 0 if whole else kv_tokens)
    return estimate(HEADER, plan).host.total_bytes


ON_CARD = replace(WISH, device="cuda", context=2048)


def test_a_model_on_a_card_takes_host_memory_too_and_layers_that_stay_behind_are_there() -> None:
    whole, partly, none = (
        estimate(HEADER, plan_of(2048, 2, "f16", layers, "cuda")) for layers in (ALL_LAYERS, N_LAYERS // 2, 0)
    )
    on_cpu = estimate(HEADER, plan_of(2048, 2, "f16", 0, "cpu"))
    assert on_cpu.device.total_bytes == 0, "without a card all is host memory"

    assert whole.host.weights == 4 * MIB, "the input embedding stays"
    assert (whole.host.kv, whole.device.kv) == (0, on_cpu.host.kv)
    assert 0 < whole.host.compute < on_cpu.host.compute
    for footprint in (whole, partly, none):
        assert footprint.device.weights + footprint.host.weights == on_cpu.host.weights
        assert footprint.device.kv + footprint.host.kv == on_cpu.host.kv
        assert footprint.host.runtime > on_cpu.host.runtime
    assert none.device.weights == none.device.kv == 0


def test_a_plan_needs_room_in_both_memories_and_the_refusal_names_the_one_that_is_short() -> None:
    need = estimate(HEADER, plan_of(2048, 2, "f16", ALL_LAYERS, "cuda")).amount
    wish = replace(ON_CARD, gpu_layers=ALL_LAYERS)

    def placed(budget: Amount, free: Amount | None = None) -> Placed | Refused:
        return place("m", HEADER, wish, budget=budget, free=budget if free is None else free)

    assert isinstance(placed(need), Placed)
    card, host = placed(need - Amount(1, 0)), placed(need - Amount(0, 1))
    busy = placed(need, need - Amount(0, 1))
    assert isinstance(card, Refused)
    assert isinstance(host, Refused)
    assert isinstance(busy, Refused)
    assert (card.code, host.code, busy.code) == ("cannot_fit", "cannot_fit", "memory_busy")
    assert re.search(r"on the card and .* of host memory at context 2048.*GiB on the card usable", card.message)
    assert re.search(r"MiB of host memory usable", host.message)
    assert "on the card usable" not in host.message
    assert re.search(r"of host memory are free: others hold the rest", busy.message)


def test_what_the_card_cannot_hold_needs_room_beside_it() -> None:
    need = estimate(HEADER, plan_of(2048, 2, "f16", ALL_LAYERS, "cuda")).amount
    half = Amount(need.device // 2, HUGE)

    partly = place("m", WHOLE_LAYERS, ON_CARD, budget=half, free=half)

    assert isinstance(partly, Placed)
    assert 0 < planned(partly).gpu_layers < N_LAYERS
    assert partly.footprint.host.weights > 4 * MIB
    without = replace(half, host=partly.footprint.amount.host - 1)
    assert isinstance(place("m", HEADER, ON_CARD, budget=without, free=without), Refused), "fewer layers need even more"
