"""Users, a rule and modelled nodes in simulated time: one run, event by event, and what came of it."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from bench.cluster.node import Node, Request
from bench.cluster.rules import Rule
from bench.cluster.users import Model, Turn
from server.bench.figures import median, percentile
from server.cluster.facts import Ask

REPORT_EVERY_S: Final = 0.5
"""As real nodes do."""
_LOOKS_WITHOUT_NEWS: Final = 20
"""A node that reports the same again tells a rule only that it is still there, so it does so more rarely."""


@dataclass
class Outcome:
    """What one run came to; seconds of clients."""

    waits_s: list[float] = field(default_factory=list)
    """From each request to its first token."""
    n_loads: int = 0
    n_later_turns: int = 0
    n_cached: int = 0
    """Later turns of conversations that came to a node which held them."""

    def figures(self) -> dict[str, float]:
        """For printing."""
        n_requests = len(self.waits_s)
        return {
            "requests": float(n_requests),
            "swaps_per_request": self.n_loads / max(1, n_requests),
            "wait_p50_s": median(self.waits_s),
            "wait_p99_s": percentile(self.waits_s, 99),
            "prefix_hits": self.n_cached / max(1, self.n_later_turns),
        }


class Simulation:
    """One run."""

    def __init__(
        self, nodes: Sequence[str], models: Sequence[Model], rule: Rule, users: Sequence[Iterator[Turn]], seed: int
    ) -> None:
        chance = random.Random(f"nodes:{seed}")
        by_name = {model.name: model for model in models}
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._rule = rule
        self._nodes = {
            name: Node(name, by_name, self._after, random.Random(chance.random()), happened=self._report_soon)
            for name in nodes
        }
        self._first_report_s = {name: REPORT_EVERY_S * place / len(nodes) for place, name in enumerate(nodes)}
        self._next_report = dict.fromkeys(nodes, 0)
        """Of each node, in `REPORT_EVERY_S`."""
        self._users = users
        self._chance = chance
        self._outcome = Outcome()
        self._talks: set[str] = set()
        self._n_sent = self._n_asking = 0

    def run(self, seconds: float) -> Outcome:
        """So much simulated time, or until no user has anything to ask."""
        for node in self._nodes.values() if self._rule.hears else ():
            self._rule.report(node.report(0.0))
            self._report_at(node, 0)
        for user in self._users:
            self._next(user, self._chance.uniform(0, 30))
        while self._events and self._events[0][0] <= seconds and self._n_asking:
            self._now, _, happen = heapq.heappop(self._events)
            happen(self._now)
        self._outcome.n_loads = sum(node.n_loads for node in self._nodes.values())
        return self._outcome

    def _after(self, seconds: float, happen: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self._now + seconds, self._order, happen))

    def _report_soon(self, node: Node, now: float) -> None:
        if self._rule.hears:
            number = 1 + math.floor((now - self._first_report_s[node.name]) / REPORT_EVERY_S)
            if number < self._next_report[node.name]:
                self._report_at(node, number)

    def _report_at(self, node: Node, number: int) -> None:
        self._next_report[node.name] = number
        at_s = self._first_report_s[node.name] + REPORT_EVERY_S * number
        self._after(at_s - self._now, partial(self._report, node, number))

    def _report(self, node: Node, number: int, now: float) -> None:
        if number == self._next_report[node.name]:
            self._rule.report(node.report(now))
            self._report_at(node, number + _LOOKS_WITHOUT_NEWS)

    def _next(self, user: Iterator[Turn], later_s: float = 0.0) -> None:
        turn = next(user, None)
        if turn is None:
            return
        self._n_asking += 1
        self._after(turn.think_s + later_s, partial(self._send, user, turn))

    def _send(self, user: Iterator[Turn], turn: Turn, now: float) -> None:
        ask = Ask(turn.model, turn.conversation, turn.prompt_tokens)
        node = self._rule.choose(ask, now)
        self._n_sent += 1

        def done(request: Request, at: float) -> None:
            self._n_asking -= 1
            self._rule.ended(ask, node, at - request.began_at)
            self._note(request)
            self._next(user)

        self._nodes[node].submit(Request(f"r{self._n_sent}", turn, now, done), now)

    def _note(self, request: Request) -> None:
        self._outcome.waits_s.append(request.first_at - request.sent_at)
        talk = request.turn.conversation
        self._outcome.n_later_turns += talk in self._talks
        self._outcome.n_cached += talk in self._talks and request.cached
        self._talks.add(talk)
