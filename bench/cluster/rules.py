"""Rules that choose a node, behind one shape: the router of `server.cluster`, and those that look at less."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from server.cluster.facts import Ask, NodeReport, Weights
from server.cluster.router import Router


class Rule(Protocol):
    """Chooses, and is told what comes of it."""

    def report(self, report: NodeReport) -> None:
        """What a node tells of itself, every now and then."""
        ...

    def choose(self, ask: Ask, now: float) -> str:
        """The node's name; the request is sent there."""
        ...

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """Its answer is complete, so many seconds after its worker took it."""
        ...


class Counting:
    """Knows how many requests each node has."""

    def __init__(self, nodes: Sequence[str], pick: Callable[[Sequence[str], Mapping[str, int]], str]) -> None:
        self._nodes = nodes
        self._pick = pick
        self._n_sent = dict.fromkeys(nodes, 0)

    def report(self, report: NodeReport) -> None:
        """Of no use to it."""

    def choose(self, ask: Ask, now: float) -> str:
        """By its counts alone."""
        node = self._pick(self._nodes, self._n_sent)
        self._n_sent[node] += 1
        return node

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """One less there."""
        self._n_sent[node] -= 1


class Multiplexed:
    """As Ray Serve chooses between replicas of a multiplexed deployment: two of those that hold the model, else two of
    those that hold the fewest, and of the two the one with fewer requests. It knows what they hold from their reports.
    """

    def __init__(self, nodes: Sequence[str], chance: random.Random) -> None:
        self._nodes = nodes
        self._chance = chance
        self._held: dict[str, frozenset[str]] = dict.fromkeys(nodes, frozenset())
        self._n_sent = dict.fromkeys(nodes, 0)

    def report(self, report: NodeReport) -> None:
        """Which models the node holds."""
        self._held[report.node] = frozenset(name for name, model in report.models.items() if model.here)

    def choose(self, ask: Ask, now: float) -> str:
        """By what is held, then by counts."""
        among = [name for name in self._nodes if ask.model in self._held[name]]
        if not among:
            fewest = min(len(held) for held in self._held.values())
            among = [name for name in self._nodes if len(self._held[name]) == fewest]
        node = min(self._chance.sample(among, min(2, len(among))), key=lambda name: self._n_sent[name])
        self._n_sent[node] += 1
        return node

    def ended(self, ask: Ask, node: str, took_s: float) -> None:
        """One less there."""
        self._n_sent[node] -= 1


class Routed:
    """The router itself."""

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

    def next_one(names: Sequence[str], _: Mapping[str, int]) -> str:
        nonlocal turn
        turn += 1
        return names[turn % len(names)]

    def least(names: Sequence[str], sent: Mapping[str, int]) -> str:
        fewest = min(sent.values())
        return chance.choice([name for name in names if sent[name] == fewest])

    def two_choices(names: Sequence[str], sent: Mapping[str, int]) -> str:
        return min(chance.sample(names, min(2, len(names))), key=lambda name: sent[name])

    return {
        "router": lambda: Routed(weights),
        "least_loaded": lambda: Counting(nodes, least),
        "multiplexed": lambda: Multiplexed(nodes, chance),
        "two_choices": lambda: Counting(nodes, two_choices),
        "round_robin": lambda: Counting(nodes, next_one),
        "random": lambda: Counting(nodes, lambda names, _: chance.choice(names)),
    }
