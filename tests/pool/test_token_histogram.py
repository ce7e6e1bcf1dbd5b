"""A histogram of tokens on the page: the very lines that the library's histogram makes of the same values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from server.exposition import Exposition, TokenHistogramFamily

EDGES = (0.002, 0.01, 0.5, 1, 2.5)
VALUES = st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.002, 0.0021, 0.5, 1.0, 2.5, 7.0]), st.integers(1, 9)))


@given(values=VALUES)
def test_it_counts_as_the_librarys_histogram_does(values):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counted = TokenHistogramFamily("gap_seconds", "Between tokens", EDGES, "model_name", registry=ours).labels("a")
    histogram = Histogram("gap_seconds", "Between tokens", ["model_name"], buckets=EDGES, registry=theirs).labels("a")
    for value, times in values:
        counted.observe(value, times)
        for _ in range(times):
            histogram.observe(value)
    mine, expected = Exposition(ours).page().splitlines(), Exposition(theirs).page().splitlines()
    sums = [line for line in (*mine, *expected) if "_sum" in line]
    assert [line for line in mine if line not in sums] == [line for line in expected if line not in sums]
    first, second = (float(line.split()[-1]) for line in sums)
    assert abs(first - second) <= 1e-9 * max(1.0, second)
