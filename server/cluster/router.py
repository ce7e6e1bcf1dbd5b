"""Which node of a cluster gets a request: where its answer begins first, by what each node holds. Pure.

For every node that comes into question the seconds are estimated until the answer begins: its model's queue, or a load
and what has to leave for it, the prompt where the node does not hold the conversation, and what else runs there. A
model that leaves is charged with its next load, as likely as it is asked for. Time is an argument.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from server.cluster.facts import Ask, Choice, HeldModel, NodeReport, NodeState, Weights
from server.cluster.holders import Holders

MOST_HEADS: Final = 100_000
"""Conversations whose node is remembered; the longest unused is forgotten first."""
LOAD_CANDIDATES: Final = 16
"""Nodes that are asked whether they load a model, beside those that hold it: its first ones by hash."""
HELD_CANDIDATES: Final = 32
"""Of the nodes that hold it, beside the conversation's: a popular model is on hundreds of a thousand."""
_SMOOTHING: Final = 0.1
_UNLOADED: Final = HeldModel("unloaded")
_HEAT_HALF_LIFE_S: Final = 300.0


@dataclass
class _ModelState:
    """What the whole cluster has seen of a model."""

    job_s: float
    load_s: float | None = None
    """What some node's last load took."""
    heat: float = 0.0
    """Requests, older ones less."""
    heat_at: float = 0.0

    def arrived(self, now: float) -> None:
        self.heat = self.rate(now) * _HEAT_HALF_LIFE_S / math.log(2) + 1
        self.heat_at = now

    def rate(self, now: float) -> float:
        """Requests per second."""
        return self.heat * math.exp2(-(now - self.heat_at) / _HEAT_HALF_LIFE_S) * math.log(2) / _HEAT_HALF_LIFE_S


class Router:
    """See the module's text. One per edge; nothing is shared between edges but what nodes report."""

    def __init__(self, weights: Weights | None = None) -> None:
        self._weights = weights or Weights()
        self._nodes: dict[str, NodeState] = {}
        self._forgotten: dict[str, NodeState] = {}
        """Of nodes that are no more, as long as requests have not ended there: one that was silent may come back."""
        self._holders = Holders()
        self._knowers: dict[str, set[str]] = {}
        """Model -> nodes that have told of it: of a tuned one, the node that made it."""
        self._models: dict[str, _ModelState] = {}
        self._heads: OrderedDict[str, str] = OrderedDict()
        self._ranks: dict[str, list[str]] = {}
        """Model -> those that know it by hash, all where none does; made anew when one more or less does."""

    # What nodes tell

    def report(self, report: NodeReport) -> None:
        """A node says how it is."""
        state = self._nodes.get(report.node)
        if state is not None and report.models is state.report.models and report.life == state.report.life:
            state.report = report
            return
        if state is None:
            before_it_went = self._forgotten.pop(report.node, None)
            state = self._nodes[report.node] = before_it_went or NodeState(report)
            state.report, state.down_until, state.load_since = report, 0.0, {}
            self._ranks.clear()
        elif state.report.life != report.life:
            state.down_until, state.load_since = 0.0, {}
        before, state.report = state.report, report
        for name in before.models.keys() - report.models.keys():
            self._no_longer(report.node, name)
            if not self.knows(name):
                self._models.pop(name, None)
        is_new = before is report or before.life != report.life
        for name, model in report.models.items():
            if model.load_s is not None:
                self._model(name).load_s = model.load_s
            if not is_new and model is before.models.get(name):
                continue
            self._note_knower(report.node, name)
            if model.here:
                state.load_since.pop(name, None)
            self._note_holder(state, name, model)

    def forget(self, node: str) -> None:
        """The node is no more; conversations that it held go to others."""
        if (state := self._nodes.pop(node, None)) is not None:
            self._ranks.clear()
            for name in state.report.models:
                self._no_longer(node, name)
            if state.n_in_flight:
                self._forgotten[node] = state

    def failed(self, node: str, now: float) -> None:
        """A request could not reach the node, or it died on the way."""
        if (state := self._nodes.get(node)) is not None:
            state.down_until = now + self._weights.down_s

    @property
    def nodes(self) -> Mapping[str, NodeState]:
        """All that have been heard of, by name."""
        return self._nodes

    def is_up(self, node: str, now: float) -> bool:
        """Whether it is heard of, and requests reach it."""
        return node in self._nodes and self._up(self._nodes[node], now)

    def is_silent(self, node: str, now: float) -> bool:
        """Whether it has reported nothing for so long that requests without a token are given to others."""
        return node in self._nodes and now - self._nodes[node].report.at_s > self._weights.stale_s

    def is_reachable(self, node: str, now: float) -> bool:
        """Whether a request may be tried there, silent as the node may be."""
        return node in self._nodes and self._nodes[node].down_until <= now

    def knows(self, model: str) -> bool:
        """Whether some node has told of the model."""
        return bool(self._knowers.get(model))

    # Requests

    def choose(self, ask: Ask, now: float, *, without: frozenset[str] = frozenset()) -> Choice | None:
        """The node whose answer is expected first, of those not in `without`; None where there is none."""
        home = self._heads.get(ask.head) if ask.head is not None else None
        leave_s, prompt_s = (
            0.0 if home is None else self._weights.leave_s,
            ask.prompt_tokens / self._weights.tokens_per_s,
        )
        best_s, best = math.inf, None
        for name in self._candidates(ask, home):
            state = self._nodes[name]
            if name in without or state.down_until > now:
                continue
            away_s = 0.0 if name == home else leave_s
            if not self._up(state, now):
                away_s += self._weights.silent_s
            if name != home:
                away_s += prompt_s
            if best is not None and away_s + self._least_s(state, ask) >= best_s:
                if leave_s + prompt_s >= best_s:
                    break  # so it is for all that follow
                continue
            wait_s, reason = self._wait(state, ask, now)
            if best is None or wait_s + away_s < best_s:
                best_s = wait_s + away_s
                best = Choice(name, wait_s, "head" if name == home and reason == "resident" else reason)
        return best

    def begin(self, ask: Ask, node: str, now: float) -> None:
        """The request is on its way to the node, which holds its conversation from now on."""
        state = self._nodes[node]
        n_now = state.sent(ask.model, 1)
        held = state.report.models.get(ask.model)
        if held is not None and not held.here:
            state.load_since.setdefault(ask.model, now)
            self._holders.note(ask.model, node, n_now)
        else:
            self._holders.moved(ask.model, node, n_now)
        self._model(ask.model).arrived(now)
        if ask.head is not None:
            self._heads[ask.head] = node
            self._heads.move_to_end(ask.head)
            if len(self._heads) > MOST_HEADS:
                self._heads.popitem(last=False)

    def end(self, ask: Ask, node: str, *, took_s: float | None) -> None:
        """It has ended; `took_s` without its wait and its model's load, None where it failed."""
        if took_s is not None and (model := self._models.get(ask.model)) is not None:
            model.job_s += _SMOOTHING * (took_s - model.job_s)
        if (gone := self._forgotten.get(node)) is not None:
            gone.sent(ask.model, -1)
            if not gone.n_in_flight:
                del self._forgotten[node]
        elif (state := self._nodes.get(node)) is not None and state.in_flight.get(ask.model):
            if took_s is not None:
                state.answered(ask.model)
            n_now = state.sent(ask.model, -1)
            self._holders.moved(ask.model, node, n_now)
            if not n_now:  # a load that none waits for any more, or that failed
                state.load_since.pop(ask.model, None)
                if (held := state.report.models.get(ask.model)) is not None:
                    self._note_holder(state, ask.model, held)

    # How

    def _up(self, state: NodeState, now: float) -> bool:
        return state.down_until <= now and now - state.report.at_s <= self._weights.stale_s

    def _candidates(self, ask: Ask, home: str | None) -> Iterator[str]:
        """The conversation's node, those that hold the model, and some that could load it; each once."""
        know = self._knowers.get(ask.model) or self._nodes
        if home is not None and home in know:
            yield home
        holders = self._holders.quietest(ask.model, HELD_CANDIDATES)
        yield from (name for name in holders if name != home)
        ranked = self._ranks.get(ask.model)
        if ranked is None:
            ranked = self._ranks[ask.model] = by_hash(ask.model, know)
        found = {home, *holders}
        yield from itertools.islice((name for name in ranked if name not in found), LOAD_CANDIDATES)

    def _least_s(self, state: NodeState, ask: Ask) -> float:
        """What the wait comes to at the least: the queue, and the load where there has to be one."""
        held = state.report.models.get(ask.model) or _UNLOADED
        queue_s, crowd_s = self._queue_s(state, ask, held)
        if held.here or ask.model in state.load_since:
            return queue_s + crowd_s
        return self._new_load_s(ask.model, held) + queue_s + crowd_s

    def _new_load_s(self, model: str, held: HeldModel) -> float:
        """Of a node that does not hold it."""
        return self._load_s(model, held) * (self._weights.copy if self._holders.count(model) else 1.0)

    def _wait(self, state: NodeState, ask: Ask, now: float) -> tuple[float, str]:
        """Seconds until the node begins to compute, and whether it holds the model."""
        held = state.report.models.get(ask.model) or _UNLOADED
        queue_s, crowd_s = self._queue_s(state, ask, held)
        if held.state == "ready":
            return queue_s + crowd_s, "resident"
        if held.here or ask.model in state.load_since:
            since = state.load_since.get(ask.model)
            load_s = self._load_s(ask.model, held)
            left_s = load_s / 2 if since is None else max(0.0, load_s - (now - since))
            if not held.here:
                left_s += self._turns_s(state, ask.model, now)
            return left_s + queue_s + crowd_s, "load"
        room_s = self._room_s(state, ask.model, held, now)
        load_s = self._new_load_s(ask.model, held)
        return load_s + self._turns_s(state, ask.model, now) + room_s + queue_s + crowd_s, "load"

    def _queue_s(self, state: NodeState, ask: Ask, held: HeldModel) -> tuple[float, float]:
        """Seconds until a place of the model is free, and what else that runs there costs."""
        job_s = self._model(ask.model).job_s
        own = state.in_flight.get(ask.model, 0)
        n_ahead = max(own, held.running + held.waiting)
        n_others = max(0, state.n_in_flight - min(own, n_ahead)) + min(n_ahead, held.parallel)
        queue_s = job_s * max(0, n_ahead + 1 - held.parallel) / held.parallel
        return queue_s, self._weights.crowd * job_s * n_others

    def _turns_s(self, state: NodeState, model: str, now: float) -> float:
        """Loads that the node has to do before, for other models that wait: one at a time, each with its turn."""
        before = state.load_since.get(model, now)
        told = state.report.models
        waiting = {name for name, since in state.load_since.items() if since < before}
        waiting |= {name for name, other in told.items() if other.waiting and not other.here}
        loads_s = (self._load_s(name, told.get(name)) + self._model(name).job_s for name in waiting - {model})
        return self._weights.turns * sum(loads_s)

    def _load_s(self, name: str, held: HeldModel | None) -> float:
        """Of the model on this node, else on the node that has told of its last load."""
        if held is not None and held.load_s is not None:
            return held.load_s
        elsewhere_s = self._model(name).load_s
        return self._weights.load_s if elsewhere_s is None else elsewhere_s

    def _room_s(self, state: NodeState, model: str, held: HeldModel, now: float) -> float:
        """What it costs that others leave for the model: jobs that have to end before, and loads that come of it.

        Infinite where all who may leave are not enough.
        """
        told = state.report.models
        room = state.report.free_bytes + sum(m.needs_bytes for m in told.values() if m.leaves)
        missing = held.needs_bytes + sum(told[name].needs_bytes for name in state.load_since if name in told) - room
        others = [(name, m) for name, m in told.items() if m.here and not m.pinned and name != model]
        if held.needs_bytes > room + sum(m.needs_bytes for _, m in others):
            return math.inf
        leaving = sorted((*self._regret(state, name, m, now), m.needs_bytes) for name, m in others)
        cost_s = 0.0
        for drain_s, again_s, n_bytes in leaving:
            if missing <= 0:
                break
            missing -= n_bytes
            cost_s += drain_s + again_s
        return cost_s

    def _regret(self, state: NodeState, name: str, held: HeldModel, now: float) -> tuple[float, float]:
        """Seconds until a resident may leave, and what its next load costs, as likely as it is."""
        seen = self._model(name)
        n_jobs = max(state.in_flight.get(name, 0), held.running + held.waiting)
        drain_s = seen.job_s * math.ceil(n_jobs / held.parallel)
        elsewhere = self._holders.count(name) or 1
        likely = 1 - math.exp(-seen.rate(now) * self._weights.horizon_s / elsewhere)
        return drain_s, self._weights.eviction * self._load_s(name, held) * likely

    def _note_holder(self, state: NodeState, name: str, held: HeldModel) -> None:
        if held.here or name in state.load_since:
            self._holders.note(name, state.report.node, state.in_flight.get(name, 0))
        else:
            self._holders.discard(name, state.report.node)

    def _note_knower(self, node: str, name: str) -> None:
        know = self._knowers.setdefault(name, set())
        if node not in know:
            know.add(node)
            self._ranks.pop(name, None)

    def _no_longer(self, node: str, name: str) -> None:
        """The node knows the model no more."""
        self._holders.discard(name, node)
        self._ranks.pop(name, None)
        know = self._knowers.get(name, set())
        know.discard(node)
        if not know:
            self._knowers.pop(name, None)

    def _model(self, name: str) -> _ModelState:
        found = self._models.get(name)
        if found is None:
            found = self._models[name] = _ModelState(self._weights.job_s)
        return found


def by_hash(name: str, nodes: Iterable[str]) -> list[str]:
    """Rendezvous hashing: every edge puts a name's nodes into the same order, and one that leaves moves no other."""
    return sorted(nodes, key=lambda node: hashlib.blake2b(f"{name}\0{node}".encode(), digest_size=8).digest())
