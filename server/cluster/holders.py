"""Which nodes hold a model, and of many those with the fewest of its requests. Pure; owns no other fact of a node."""

from __future__ import annotations

import bisect


class Holders:
    """Of every model: a popular one is on hundreds of a thousand nodes, and no choice looks at all of them."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, int]] = {}
        """Model -> node -> requests of the model there."""
        self._in_order: dict[str, list[tuple[int, str]]] = {}
        """Model -> (requests, node), ascending."""

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, model: str) -> int:
        """Nodes that hold it."""
        return len(self._counts.get(model, ()))

    def note(self, model: str, node: str, n_requests: int) -> None:
        """The node holds the model, and has so many of its requests."""
        counts = self._counts.setdefault(model, {})
        before = counts.get(node)
        if before == n_requests:
            return
        in_order = self._in_order.setdefault(model, [])
        if before is not None:
            del in_order[bisect.bisect_left(in_order, (before, node))]
        counts[node] = n_requests
        bisect.insort(in_order, (n_requests, node))

    def moved(self, model: str, node: str, n_requests: int) -> None:
        """The node has so many of the model's requests, whether it holds it or not."""
        if node in self._counts.get(model, ()):
            self.note(model, node, n_requests)

    def discard(self, model: str, node: str) -> None:
        """The node does not hold it."""
        before = self._counts.get(model, {}).pop(node, None)
        if before is not None:
            in_order = self._in_order[model]
            del in_order[bisect.bisect_left(in_order, (before, node))]
            if not in_order:
                del self._in_order[model], self._counts[model]

    def quietest(self, model: str, most: int) -> list[str]:
        """All that hold it by name; of more than `most` so many with the fewest of its requests."""
        in_order = self._in_order.get(model, [])
        if len(in_order) <= most:
            return sorted(node for _, node in in_order)
        return [node for _, node in in_order[:most]]
