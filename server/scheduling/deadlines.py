"""The earliest of many deadlines, most of which never come: a heap that corrects itself lazily. Pure."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Items with a time each; `when` gives an item's time now, None when it has none any more.

    An item whose time moves later needs no word; one whose time moves earlier is added again.
    """

    def __init__(self, when: Callable[[T], float | None]) -> None:
        self._when = when
        self._heap: list[tuple[float, int, T]] = []
        self._n_added = 0

    def add(self, item: T) -> None:
        """Watch an item."""
        at = self._when(item)
        if at is not None:
            self._n_added += 1
            heapq.heappush(self._heap, (at, self._n_added, item))

    def next(self) -> float | None:
        """The earliest time, None without any."""
        while self._heap:
            at, order, item = self._heap[0]
            now = self._when(item)
            if now == at:
                return at
            if now is None:
                heapq.heappop(self._heap)
            else:
                heapq.heapreplace(self._heap, (now, order, item))
        return None

    def due(self, now: float) -> list[T]:
        """Take out the items whose time has come, each once."""
        found: dict[int, T] = {}
        while (at := self.next()) is not None and at <= now:
            item = heapq.heappop(self._heap)[2]
            found[id(item)] = item
        return list(found.values())
