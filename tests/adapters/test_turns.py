"""Turns of adapters where a pass has one: how long they last, and that none is forgotten."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.generation.batching import Demand
from backends.generation.turns import LEAST_STEPS, TURN_US, AdapterTurns, Turn


def test_one_that_is_alone_goes_on_and_others_wait_for_the_end_of_its_turn() -> None:
    turns = AdapterTurns()

    assert [turns.next({"a"}, at * TURN_US) for at in range(5)] == ["a"] * 5
    assert turns.next({"a", ""}, 5 * TURN_US) == "", "its turn was over long ago"
    assert turns.next({"a", ""}, 5 * TURN_US + 1) == ""
    assert turns.next({"a", ""}, 5.5 * TURN_US) == "", "it is not over yet"
    assert turns.next({"a", ""}, 6 * TURN_US) == "a"
    assert turns.next({"b"}, 6 * TURN_US + 1) == "b", "an ended one has no turn left"


def test_a_step_is_of_one_adapter_and_counts_who_waits_for_it() -> None:
    sequences: list[Any] = [SimpleNamespace(request=SimpleNamespace(job=SimpleNamespace(adapter=a))) for a in "abab"]
    demands = [Demand(0, 1, True), Demand(1, 1, True), Demand(2, 60, False), Demand(3, 90, False)]

    turn = AdapterTurns().own(demands, sequences, 0.0)

    assert turn == Turn([demands[0], demands[2]], n_decoding=1, n_prompts=1)
    assert AdapterTurns().own([], sequences, 0.0) == Turn([])


@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.floats(0, 3 * TURN_US)), min_size=1, max_size=80
    )
)
def test_none_waits_longer_than_all_the_others_turns(steps: list[tuple[set[str], float]]) -> None:
    turns, now_us = AdapterTurns(), 0.0
    waited: dict[str, int] = {}
    in_turn, n_steps, began_us = "", 0, 0.0

    for wanting, duration_us in steps:
        names = sorted(wanting)
        adapter = turns.next(wanting, now_us)
        assert adapter in wanting
        if adapter != in_turn:
            if in_turn in wanting:
                assert n_steps >= LEAST_STEPS
                assert now_us - began_us >= TURN_US
            waited = {name: waited.get(name, 0) + 1 for name in names if name != adapter}
            in_turn, n_steps, began_us = adapter, 0, now_us
        waited = {name: n for name, n in waited.items() if name in wanting and name != adapter}
        assert max(waited.values(), default=0) <= 3, "turns of others since it began to wait"
        n_steps, now_us = n_steps + 1, now_us + duration_us
