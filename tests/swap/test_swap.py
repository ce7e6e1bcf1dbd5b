"""The real engine swapped back and forth by a real server: the first token comes about as fast as the load itself."""

from __future__ import annotations

import pytest

from bench import swap


@pytest.mark.engine
def test_a_swap_costs_little_more_than_the_load() -> None:
    figures = swap.measure(rounds=5, pause_s=2.0)
    # Measured alone: 13 to 19 ms of overhead and 45 to 100 ms to the first token; the bounds are the promise.
    assert figures["overhead_ms"] < 150, figures
    assert figures["ttft_ms"] < 400, figures
