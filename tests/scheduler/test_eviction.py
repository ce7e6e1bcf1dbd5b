"""Eviction: of all sets that free enough, the one with the least regret."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.scheduling.eviction import EXACT_UP_TO, Candidate, choose, regret

SOME = st.lists(
    st.tuples(st.integers(1, 20), st.floats(0, 100, allow_nan=False)), min_size=0, max_size=EXACT_UP_TO
).map(lambda pairs: [Candidate(f"m{i}", n, cost) for i, (n, cost) in enumerate(pairs)])


def names(candidates: list[Candidate] | None) -> list[str] | None:
    return None if candidates is None else sorted(c.name for c in candidates)


def test_nothing_leaves_when_nothing_is_needed() -> None:
    assert choose([Candidate("a", 5, 1.0)], 0) == []


def test_all_together_are_not_enough() -> None:
    assert choose([Candidate("a", 5, 1.0), Candidate("b", 4, 1.0)], 10) is None


def test_the_least_missed_leaves() -> None:
    assert names(choose([Candidate("hot", 5, 9.0), Candidate("cold", 5, 0.1)], 5)) == ["cold"]


def test_one_large_victim_is_preferred_to_two_small_at_equal_regret() -> None:
    small = [Candidate("s1", 5, 1.0), Candidate("s2", 5, 1.0)]
    assert names(choose([*small, Candidate("large", 10, 2.0)], 10)) == ["large"]


def test_a_hot_large_model_stays_when_two_cold_small_ones_free_enough() -> None:
    small = [Candidate("s1", 5, 0.1), Candidate("s2", 5, 0.1)]
    assert names(choose([*small, Candidate("large", 10, 50.0)], 10)) == ["s1", "s2"]


def test_nobody_leaves_who_is_not_needed() -> None:
    candidates = [Candidate("tiny", 1, 0.0), Candidate("exact", 9, 3.0), Candidate("rest", 3, 2.9)]
    assert names(choose(candidates, 9)) == ["exact"]


def test_regret_grows_with_reload_time_use_and_priority() -> None:
    plain = regret(load_s=2.0, heat=3.0, priority=0)
    assert regret(load_s=4.0, heat=3.0, priority=0) == 2 * plain
    assert regret(load_s=2.0, heat=6.0, priority=0) == 2 * plain
    assert regret(load_s=2.0, heat=3.0, priority=1) == 2 * plain
    assert regret(load_s=2.0, heat=3.0, priority=1000) < float("inf")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(SOME.filter(lambda c: len(c) <= 8), st.integers(1, 60))
def test_no_set_is_cheaper(candidates: list[Candidate], needed: int) -> None:
    chosen = choose(candidates, needed)
    sets = [s for n in range(len(candidates) + 1) for s in combinations(candidates, n)]
    enough = [sum(c.cost for c in s) for s in sets if sum(c.n_bytes for c in s) >= needed]
    assert (chosen is None) == (not enough)
    if chosen is not None:
        assert sum(c.n_bytes for c in chosen) >= needed
        assert sum(c.cost for c in chosen) <= min(enough) + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 9)), min_size=13, max_size=40), st.integers(1, 200))
def test_many_candidates_free_enough_and_nobody_in_vain(pairs: list[tuple[int, float]], needed: int) -> None:
    candidates = [Candidate(f"m{i}", n, cost) for i, (n, cost) in enumerate(pairs)]
    chosen = choose(candidates, needed)
    assert (chosen is None) == (sum(n for n, _ in pairs) < needed)
    if chosen:
        freed = sum(c.n_bytes for c in chosen)
        assert freed >= needed
        assert all(freed - c.n_bytes < needed for c in chosen)
