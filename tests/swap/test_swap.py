"""The real engine swapped back and forth by a real server: the first token comes about as fast as the load itself."""

from __future__ import annotations

import pytest

from bench import swap


@pytest.mark.engine
def test_swaps_back_to_back_cost_little_more_than_the_loads() -> None:
    figures = swap.measure(rounds=8, pause_s=0.0)
    # Measured alone: 20 ms of overhead and 65 ms to the first token; the bounds are the promise.
    assert figures["overhead_ms"] < 150, figures
    assert figures["ttft_ms"] < 400, figures
