"""Eviction: of all sets that free enough, the one with the lowest score."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.plan import Amount
from server.scheduling.eviction import EXACT_UP_TO, Candidate, choose, eviction_score, freed_by


def host(n_bytes: int) -> Amount:
    return Amount(host=n_bytes)


SOME = st.lists(
    st.tuples(st.integers(1, 20), st.floats(0, 100, allow_nan=False)), min_size=0, max_size=EXACT_UP_TO
).map(lambda pairs: [Candidate(f"m{i}", host(n), cost) for i, (n, cost) in enumerate(pairs)])


def names(candidates: list[Candidate] | None) -> list[str] | None:
    return None if candidates is None else sorted(c.name for c in candidates)


def test_nothing_leaves_when_nothing_is_needed() -> None:
    assert choose([Candidate("a", host(5), 1.0)], host(0)) == []


def test_all_together_are_not_enough() -> None:
    assert choose([Candidate("a", host(5), 1.0), Candidate("b", host(4), 1.0)], host(10)) is None


def test_the_least_missed_leaves() -> None:
    assert names(choose([Candidate("hot", host(5), 9.0), Candidate("cold", host(5), 0.1)], host(5))) == ["cold"]


def test_one_large_victim_is_preferred_to_two_small_at_equal_eviction_score() -> None:
    small = [Candidate("s1", host(5), 1.0), Candidate("s2", host(5), 1.0)]
    assert names(choose([*small, Candidate("large", host(10), 2.0)], host(10))) == ["large"]


def test_a_hot_large_model_stays_when_two_cold_small_ones_free_enough() -> None:
    small = [Candidate("s1", host(5), 0.1), Candidate("s2", host(5), 0.1)]
    assert names(choose([*small, Candidate("large", host(10), 50.0)], host(10))) == ["s1", "s2"]


def test_none_leaves_that_is_not_needed() -> None:
    candidates = [Candidate("tiny", host(1), 0.0), Candidate("exact", host(9), 3.0), Candidate("rest", host(3), 2.9)]
    assert names(choose(candidates, host(9))) == ["exact"]


def test_score_grows_with_reload_time_use_and_priority() -> None:
    plain = eviction_score(load_s=2.0, heat=3.0, priority=0)
    assert eviction_score(load_s=4.0, heat=3.0, priority=0) == 2 * plain
    assert eviction_score(load_s=2.0, heat=6.0, priority=0) == 2 * plain
    assert eviction_score(load_s=2.0, heat=3.0, priority=1) == 2 * plain
    assert eviction_score(load_s=2.0, heat=3.0, priority=1000) < float("inf")


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(SOME.filter(lambda c: len(c) <= 8), st.integers(1, 60))
def test_no_set_is_cheaper(candidates: list[Candidate], needed: int) -> None:
    chosen = choose(candidates, host(needed))
    sets = [s for n in range(len(candidates) + 1) for s in combinations(candidates, n)]
    enough = [sum(c.cost for c in s) for s in sets if sum(c.frees.host for c in s) >= needed]
    assert (chosen is None) == (not enough)
    if chosen is not None:
        assert sum(c.frees.host for c in chosen) >= needed
        assert sum(c.cost for c in chosen) <= min(enough) + 1e-9


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.floats(0, 9)), min_size=13, max_size=40), st.integers(1, 200))
def test_many_candidates_free_enough_and_none_in_vain(pairs: list[tuple[int, float]], needed: int) -> None:
    candidates = [Candidate(f"m{i}", host(n), cost) for i, (n, cost) in enumerate(pairs)]
    chosen = choose(candidates, host(needed))
    assert (chosen is None) == (sum(n for n, _ in pairs) < needed)
    if chosen:
        freed = sum(c.frees.host for c in chosen)
        assert freed >= needed
        assert all(freed - c.frees.host < needed for c in chosen)


BOTH = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.floats(0, 100, allow_nan=False)), max_size=8).map(
    lambda rows: [Candidate(f"m{i}", Amount(device, host), cost) for i, (device, host, cost) in enumerate(rows)]
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(BOTH, st.integers(-5, 60), st.integers(-5, 30))
def test_no_set_is_cheaper_where_both_memories_are_short(candidates: list[Candidate], device: int, beside: int) -> None:
    needed = Amount(device, beside)
    chosen = choose(candidates, needed)
    sets = [s for n in range(len(candidates) + 1) for s in combinations(candidates, n)]
    enough = [sum(c.cost for c in s) for s in sets if needed.within(freed_by(s))]
    assert (chosen is None) == (not enough)
    if chosen is not None:
        assert needed.within(freed_by(chosen))
        assert sum(c.cost for c in chosen) <= min(enough) + 1e-9


def test_what_frees_the_memory_that_is_short_leaves() -> None:
    on_card, beside = Candidate("on card", Amount(10, 1), 0.1), Candidate("beside", Amount(0, 10), 5.0)
    assert names(choose([on_card, beside], Amount(-3, 8))) == ["beside"]
    assert names(choose([on_card, beside], Amount(8, 0))) == ["on card"]
    assert names(choose([on_card, beside], Amount(8, 8))) == ["beside", "on card"]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9), st.floats(0, 9)), min_size=13, max_size=30),
    st.integers(1, 150),
    st.integers(1, 80),
)
def test_many_candidates_free_enough_of_both_and_none_in_vain(
    rows: list[tuple[int, int, float]], device: int, beside: int
) -> None:
    candidates = [Candidate(f"m{i}", Amount(d, h), cost) for i, (d, h, cost) in enumerate(rows)]
    needed = Amount(device, beside)
    chosen = choose(candidates, needed)
    assert (chosen is None) == (not needed.within(freed_by(candidates)))
    for victim in chosen or []:
        assert not needed.within(freed_by([c for c in chosen or [] if c is not victim]))
