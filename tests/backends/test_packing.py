"""Whose inputs share a pass."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.vectors.packing import pack


def test_every_job_has_a_turn_before_any_has_two():
    assert pack([[4] * 1000, [4], [4, 4]], max_tokens=16, max_inputs=64) == [2, 1, 1]
    assert pack([[4] * 1000, [4]], max_tokens=20, max_inputs=64) == [4, 1]


def test_an_input_longer_than_a_pass_goes_alone_when_it_is_first():
    assert pack([[500, 3], [3]], max_tokens=128, max_inputs=64) == [1, 0]


def test_a_job_that_does_not_fit_is_left_out_and_others_go_on():
    assert pack([[100], [100], [20, 8, 1]], max_tokens=128, max_inputs=64) == [1, 0, 2]


def test_a_padded_pass_counts_the_longest_for_all():
    assert pack([[10, 10], [40]], max_tokens=80, max_inputs=64, padded=True) == [1, 1]
    assert pack([[10] * 9], max_tokens=80, max_inputs=64, padded=True) == [8]


def test_no_pass_has_more_inputs_than_it_may():
    assert pack([[1] * 9, [1] * 9, [1] * 9], max_tokens=128, max_inputs=4) == [2, 1, 1]


@given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=6), min_size=1, max_size=6),
    st.integers(1, 256),
    st.integers(1, 8),
    st.booleans(),
)
def test_a_pass_is_never_empty_nor_too_large_and_all_inputs_come_to_an_end(queues, max_tokens, max_inputs, padded):
    left = [list(queue) for queue in queues]
    while any(left):
        left = [queue for queue in left if queue]
        counts = pack(left, max_tokens=max_tokens, max_inputs=max_inputs, padded=padded)
        taken = [length for queue, n in zip(left, counts, strict=True) for length in queue[:n]]

        assert 0 < len(taken) <= max_inputs
        cost = max(taken) * len(taken) if padded else sum(taken)
        assert cost <= max_tokens or len(taken) == 1
        left = [queue[n:] for queue, n in zip(left, counts, strict=True)]
        left = [*left[1:], left[0]]
