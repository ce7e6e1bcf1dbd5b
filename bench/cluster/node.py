"""A modelled node: the real scheduler over modelled loads, answers and caches. Owns one card's time.

A step reads the weights of its model once, for all its sequences; models that run at once share the card. Loads read
a file at the rate of the page cache. The figures are those that `onecard fit` plans with for a 12 GB card.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from backends.plan import Amount
from bench.cluster.users import GIB, Model, Turn
from server.cluster.facts import HeldModel, NodeReport
from server.scheduling.budget import Refused
from server.scheduling.decisions import Action, CancelLoad, Dispatch, Drain, Load, ModelState, Reject, Unload
from server.scheduling.scheduler import ModelRules, Rules, Scheduler, SwapRules

BUDGET_BYTES: Final = round(11.2 * GIB)
CARD_BYTES_PER_S: Final = 0.8 * 504e9
LOAD_BYTES_PER_S: Final = 2.2 * GIB
LOAD_LEAST_S: Final = 0.6
"""A process, its context, its first step."""
LOAD_SIGMA: Final = 0.25
UNLOAD_S: Final = 0.15
PREFILL_BYTES_PER_S: Final = 8e12
"""Of weights times tokens: 1700 tokens per second of a model of 4.7 GB."""
ROW_SHARE: Final = 0.06
"""Of a step, for each further sequence in it."""
CACHE_TOKENS: Final = 120_000
"""Of conversations in the prefix cache in host memory."""
_NO_LIMIT: Final = 10**6
_NOTHING: Final = Amount()

After = Callable[[float, Callable[[float], None]], None]


@dataclass
class Request:
    """A turn on its way."""

    id: str
    turn: Turn
    sent_at: float
    done: Callable[[Request, float], None]
    """Called at its end with the moment."""
    began_at: float = 0.0
    """When the worker took it."""
    first_at: float = 0.0
    """When its first token came."""
    cached: bool = False


class _Card:
    """What the scheduler asks about bytes."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._needs = {name: Amount(host=model.needs_bytes) for name, model in models.items()}
        self._holds: set[str] = set()
        self.free = Amount(host=BUDGET_BYTES)

    over = _NOTHING
    exceeded = False

    def take(self, model: str) -> None:
        self._holds.add(model)
        self.free -= self._needs[model]

    def give(self, model: str) -> None:
        self._holds.remove(model)
        self.free += self._needs[model]

    def held(self, model: str) -> Amount:
        return self._needs[model] if model in self._holds else _NOTHING

    def need(self, model: str, *, smaller_by: int, context: int = 0) -> Amount | Refused:
        return self._needs[model]


class Node:
    """One of them; `after(seconds, what)` is the simulation's clock, `happened` is called once between reports."""

    def __init__(
        self,
        name: str,
        models: Mapping[str, Model],
        after: After,
        chance: random.Random,
        *,
        happened: Callable[[Node, float], None],
    ) -> None:
        self.name = name
        self._models = models
        self._after = after
        self._tell = happened
        self._chance = chance
        self._card = _Card(models)
        self._requests: dict[str, Request] = {}
        self._running: dict[str, int] = {}
        self._load_s: dict[str, float] = {}
        self._cache: OrderedDict[str, int] = OrderedDict()
        self._n_cached = 0
        """Tokens of all of them."""
        self.n_loads = 0
        swaps = SwapRules(max_wait_s=_NO_LIMIT)
        rules = Rules(max_queue=_NO_LIMIT, request_timeout_s=_NO_LIMIT, swaps=swaps)
        named = [ModelRules(model.name, parallel=model.parallel) for model in models.values()]
        self._scheduler = Scheduler(named, rules, self._card)
        self._tick_at = math.inf
        self._told: dict[str, HeldModel] = {}
        """What the last report said."""
        self._changed = set(models)
        """Models of which it may be otherwise by now."""
        self._happened = True
        """Anything, since the last report."""

    def submit(self, request: Request, now: float) -> None:
        """Take a request."""
        self._requests[request.id] = request
        self._changed.add(request.turn.model)
        self._do(self._scheduler.submit(request.id, request.turn.model, sequences=1, now=now), now)

    def report(self, now: float) -> NodeReport:
        """As a real node tells it."""
        if self._happened:
            self._happened = False
            changed = {name: self._held(name, now) for name in self._models if name in self._changed}
            self._told = self._told | changed
            self._changed = {name for name, held in changed.items() if held.leaves}  # may stay without a word
        return NodeReport(self.name, "1", now, self._card.free.host, self._told)

    def _held(self, name: str, now: float) -> HeldModel:
        view, model = self._scheduler.view(name, now), self._models[name]
        return HeldModel(
            view.state.value,
            running=view.running,
            waiting=view.waiting,
            parallel=model.parallel,
            needs_bytes=model.needs_bytes,
            load_s=self._load_s.get(name),
        )

    def _do(self, actions: list[Action], now: float) -> None:
        if not self._happened:
            self._happened = True
            self._tell(self, now)
        for action in actions:
            match action:
                case Dispatch(job_id, model):
                    self._begin(self._requests[job_id], model, now)
                case Load(model):
                    self._load(model, now)
                case Unload(model) | CancelLoad(model):
                    self._changed.add(model)
                    self._after(UNLOAD_S, partial(self._gone, model))
                case Drain(model):
                    self._changed.add(model)
                case Reject(job_id, code):
                    raise RuntimeError(f"the modelled node {self.name} refused {job_id}: {code}")
        tick_at = self._scheduler.next_deadline()
        if tick_at is not None and tick_at < min(self._tick_at, now + 60):
            self._tick_at = tick_at
            self._after(max(0.0, tick_at - now), self._tick)

    def _tick(self, now: float) -> None:
        self._tick_at = math.inf
        self._do(self._scheduler.on_tick(now), now)

    def _load(self, name: str, now: float) -> None:
        self.n_loads += 1
        self._changed.add(name)
        model = self._models[name]
        self._card.take(name)
        typical_s = LOAD_LEAST_S + model.needs_bytes / LOAD_BYTES_PER_S
        load_s = self._load_s[name] = typical_s * math.exp(self._chance.gauss(0, LOAD_SIGMA))
        self._after(load_s, partial(self._ready, name))

    def _ready(self, name: str, now: float) -> None:
        if self._scheduler.view(name, now).state is ModelState.LOADING:
            self._changed.add(name)
            self._do(self._scheduler.on_ready(name, parallel=self._models[name].parallel, now=now), now)

    def _gone(self, name: str, now: float) -> None:
        self._card.give(name)
        self._changed.add(name)
        self._do(self._scheduler.on_gone(name, now=now), now)

    def _begin(self, request: Request, name: str, now: float) -> None:
        """Its time is told by what runs beside it when it begins."""
        turn, size = request.turn, self._models[name].needs_bytes
        self._changed.add(name)
        self._running[name] = self._running.get(name, 0) + 1
        sharing = sum(1 + ROW_SHARE * (n - 1) for n in self._running.values() if n)
        request.began_at = now
        request.cached = turn.conversation in self._cache
        n_prompt = turn.new_tokens if request.cached else turn.prompt_tokens
        prefill_s = n_prompt * size / PREFILL_BYTES_PER_S * sharing
        step_s = sum(
            self._models[m].needs_bytes / CARD_BYTES_PER_S * (1 + ROW_SHARE * (n - 1))
            for m, n in self._running.items()
            if n
        )
        request.first_at = now + prefill_s + step_s
        self._after(prefill_s + step_s * turn.answer_tokens, partial(self._end, request))

    def _end(self, request: Request, now: float) -> None:
        turn = request.turn
        self._changed.add(turn.model)
        self._running[turn.model] -= 1
        self._remember(turn)
        del self._requests[request.id]
        self._do(self._scheduler.on_terminal(request.id, now, finished=True), now)
        request.done(request, now)

    def _remember(self, turn: Turn) -> None:
        n_tokens = turn.prompt_tokens + turn.answer_tokens
        self._n_cached += n_tokens - self._cache.pop(turn.conversation, 0)
        self._cache[turn.conversation] = n_tokens
        while self._n_cached > CACHE_TOKENS and len(self._cache) > 1:
            self._n_cached -= self._cache.popitem(last=False)[1]
