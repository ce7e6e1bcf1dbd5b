"""A histogram for what happens with every token: an addition, where the library takes twelve calls and two locks.

Owns the counts; the registry collects them like any other family. For the event loop's thread only.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from prometheus_client import CollectorRegistry


class Tally:
    """The counts of one series, by bucket."""

    __slots__ = ("_edges", "counts", "total")

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges = edges
        self.counts = [0] * (len(edges) + 1)
        """Of values up to each edge that exceed the one before; the last is for those above all edges."""
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value so many times."""
        self.counts[bisect_left(self._edges, value)] += times
        self.total += value * times


class TallyFamily(Collector):
    """The tallies of one name, told apart by one label."""

    def __init__(
        self, name: str, text: str, edges: Sequence[float], label: str, *, registry: CollectorRegistry
    ) -> None:
        self._name, self._text, self._edges, self._label = name, text, edges, label
        self._tallies: dict[str, Tally] = {}
        self._les = [*map(floatToGoString, edges), "+Inf"]
        registry.register(self)

    def labels(self, value: str) -> Tally:
        """The series of that label's value."""
        return self._tallies.setdefault(value, Tally(self._edges))

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What the registry asks for: cumulative counts."""
        family = HistogramMetricFamily(self._name, self._text, labels=[self._label])
        for value, tally in self._tallies.items():
            buckets = list(zip(self._les, map(float, accumulate(tally.counts)), strict=True))
            family.add_metric([value], buckets, sum_value=tally.total)
        yield family
