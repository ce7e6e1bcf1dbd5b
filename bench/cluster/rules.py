"""Rules that choose a node, behind one shape: the router of `server.cluster`, and those that look at less."""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable, Sequence
from typing import Protocol

from server.cluster.facts import Ask, NodeReport, Weights
from server.cluster.router import Router


class Rule(Protocol):
    """Chooses, and is told what comes of it."""

    hears: bool
    """What nodes report is of use to it."""

    def report(self, report: NodeReport) -> None:
        """What a node tells of itself, every now and then."""
        ...

    def choose(self, ask: Ask, now: float) -> str:
        """The node's name; the request is sent there."""
        ...

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """Its answer is complete, so many seconds after its worker took it."""
        ...


class Counts:
    """Requests of each node, and the nodes that have the fewest, in their order."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = nodes
        self.of = dict.fromkeys(nodes, 0)
        self._place = {name: place for place, name in enumerate(nodes)}
        self._having: dict[int, list[int]] = {0: list(range(len(nodes)))}
        """Count -> places of the nodes that have it, ascending."""
        self._fewest = 0

    def add(self, node: str, change: int) -> None:
        """One more or one less."""
        place, before = self._place[node], self.of[node]
        after = self.of[node] = before + change
        having = self._having[before]
        del having[bisect.bisect_left(having, place)]
        bisect.insort(self._having.setdefault(after, []), place)
        if after < self._fewest or not self._having[self._fewest]:
            self._fewest = after

    def fewest(self) -> list[int]:
        """Places in `nodes`."""
        return self._having[self._fewest]


class Counting:
    """Knows how many requests each node has."""

    hears = False

    def __init__(self, nodes: Sequence[str], pick: Callable[[Counts], str]) -> None:
        self._pick = pick
        self._counts = Counts(nodes)

    def report(self, report: NodeReport) -> None:
        """Of no use to it."""

    def choose(self, ask: Ask, now: float) -> str:
        """By its counts alone."""
        node = self._pick(self._counts)
        self._counts.add(node, 1)
        return node

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """One less there."""
        self._counts.add(node, -1)


class Multiplexed:
    """As Ray Serve chooses between replicas of a multiplexed deployment: two of those that hold the model, else two of
    those that hold the fewest, and of the two the one with fewer requests. It knows what they hold from their reports.
    """

    hears = True

    def __init__(self, nodes: Sequence[str], chance: random.Random) -> None:
        self._nodes = nodes
        self._chance = chance
        self._place = {name: place for place, name in enumerate(nodes)}
        self._held: dict[str, frozenset[str]] = dict.fromkeys(nodes, frozenset())
        self._holders: dict[str, list[int]] = {}
        """Model -> places of the nodes that hold it, ascending."""
        self._n_sent = dict.fromkeys(nodes, 0)

    def report(self, report: NodeReport) -> None:
        """Which models the node holds."""
        before, place = self._held[report.node], self._place[report.node]
        held = self._held[report.node] = frozenset(name for name, model in report.models.items() if model.here)
        for name in held - before:
            bisect.insort(self._holders.setdefault(name, []), place)
        for name in before - held:
            holders = self._holders[name]
            del holders[bisect.bisect_left(holders, place)]

    def choose(self, ask: Ask, now: float) -> str:
        """By what is held, then by counts."""
        among: Sequence[int] = self._holders.get(ask.model) or self._emptiest()
        two = self._chance.sample(among, min(2, len(among)))
        node = min((self._nodes[place] for place in two), key=self._n_sent.__getitem__)
        self._n_sent[node] += 1
        return node

    def _emptiest(self) -> list[int]:
        fewest = min(len(held) for held in self._held.values())
        return [place for place, name in enumerate(self._nodes) if len(self._held[name]) == fewest]

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """One less there."""
        self._n_sent[node] -= 1


class Routed:
    """The router itself."""

    hears = True

    def __init__(self, weights: Weights) -> None:
        self._router = Router(weights)
        self.report = self._router.report

    def choose(self, ask: Ask, now: float) -> str:
        """As the edge asks it."""
        choice = self._router.choose(ask, now)
        if choice is None:
            raise RuntimeError("no modelled node is up")
        self._router.begin(ask, choice.node, now)
        return choice.node

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """As the edge tells it."""
        self._router.end(ask, node, took_s=took_s)


def rules(nodes: Sequence[str], chance: random.Random, weights: Weights) -> dict[str, Callable[[], Rule]]:
    """Each by its name, to be made anew for each run."""
    turn = 0

    def next_one(counts: Counts) -> str:
        nonlocal turn
        turn += 1
        return counts.nodes[turn % len(counts.nodes)]

    def least(counts: Counts) -> str:
        return counts.nodes[chance.choice(counts.fewest())]

    def two_choices(counts: Counts) -> str:
        return min(chance.sample(counts.nodes, min(2, len(counts.nodes))), key=counts.of.__getitem__)

    return {
        "router": lambda: Routed(weights),
        "least_loaded": lambda: Counting(nodes, least),
        "multiplexed": lambda: Multiplexed(nodes, chance),
        "two_choices": lambda: Counting(nodes, two_choices),
        "round_robin": lambda: Counting(nodes, next_one),
        "random": lambda: Counting(nodes, lambda counts: chance.choice(counts.nodes)),
    }
