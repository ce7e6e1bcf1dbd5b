"""Which model is loaded next and who leaves for it: the part of the scheduler that thinks in bytes. Pure.

Waiting models take turns. A resident stays for its turn, the shorter the more models wait for its place, so that
requests are served in runs and not one per load. When nothing runs anywhere, all wait for a load, and the turns
end as soon as the next request has had time to come. What is taken for a waiting model is claimed for it, so that
no other model slips in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from backends.plan import Amount
from server.scheduling.budget import Refused
from server.scheduling.decisions import Action, Drain, Load, ModelState, Unload, UnloadReason
from server.scheduling.eviction import Candidate, choose, eviction_score, freed_by, helps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from server.scheduling.budget import Budget
    from server.scheduling.model_record import ModelRecord

Policy = Literal["collate", "fifo"]

_ROUND_LOADS: Final = 6.0
"""Load times in which every waiting model has had its turn once: that decides how long a turn is."""
_LEAST_TURN_LOADS: Final = 0.5
"""And at least, however many wait: else loading would be all there is."""
_LINGER_LOADS: Final = 0.1
"""Load times that an idle model waits for its next request when nothing is known of its clients."""
_PRESSING_LOADS: Final = 4.0
"""Load times after which a waiting model goes before those with more requests."""
_LOOKED_AT: Final = 4
"""Waiting models for which residents may have to leave in one decision; the others come later."""
_NEVER: Final = float("inf")
_LEAVING: Final = (ModelState.DRAINING, ModelState.UNLOADING)


@dataclass(frozen=True)
class SwapRules:
    """How models make room for each other, in seconds."""

    max_wait_s: float = 60.0
    min_residency_s: float = 15.0
    """The longest turn of a model in use while others wait."""
    relieve: bool = True
    """Idle models leave when the budget shrinks below what is held."""
    policy: Policy = "collate"
    """`fifo` is for measurements: strictly in order of arrival, the least recently used leaves at once."""


class Swaps:
    """See the module's text. It changes the states of models from ready to draining and back, and to loading."""

    def __init__(
        self,
        models: Mapping[str, ModelRecord],
        budget: Budget,
        rules: SwapRules,
        *,
        unclaim: Callable[[ModelRecord, float], None],
    ) -> None:
        self._models = models
        self._budget = budget
        self.rules = rules
        self._unclaim = unclaim
        self._claims: dict[str, frozenset[str]] = {}
        self._typical_load_s = 0.0
        self._quiet_since: float | None = None
        self.look_at: float | None = None
        """When a decision may turn out otherwise although nothing has happened."""

    def decide(self, now: float) -> list[Action]:
        """Begin at most one load, and whatever has to leave for it or for want of budget."""
        self.look_at = None
        actions = self._relieve(now)
        waiting: list[ModelRecord] = []
        for model in self._models.values():
            if model.state is ModelState.LOADING:
                return actions
            if model.state is ModelState.UNLOADED and model.may_load(now):
                waiting.append(model)
        if waiting:
            actions += self._next(waiting, now)
        return actions

    def call_off(self, now: float) -> None:
        """Drop the claims of models that are not wanted any more; who only drains for them stays."""
        for name in [name for name in self._claims if not self._models[name].may_load(now)]:
            victims = self._claims.pop(name)
            self._unclaim(self._models[name], now)
            for victim in (self._models[v] for v in victims):
                if victim.state is ModelState.DRAINING and victim.leaving == "room":
                    victim.state, victim.leaving = ModelState.READY, None

    def forget(self, name: str) -> None:
        """The model is no more: nothing is claimed for it, and it makes room for nothing."""
        self._claims.pop(name, None)
        self._claims = {wanted: victims - {name} for wanted, victims in self._claims.items()}

    def make_air(self, model: ModelRecord, now: float) -> list[Action]:
        """Let the idle model that is missed least leave, although the budget says there is room; empty without one."""
        idle = [self._candidate(other, now) for other in self._evictable() if other.idle and other is not model]
        least = min(idle, key=lambda c: c.cost, default=None)
        return [] if least is None else self._claim(model, [least], now)

    # Whose turn it is

    def _next(self, waiting: list[ModelRecord], now: float) -> list[Action]:
        free, coming = self._budget.free, self._unclaimed()
        self._typical_load_s = max((m.load_s for m in self._models.values() if m.load_s is not None), default=0.0)
        self._quiet_since = self._all_idle_since()
        for name, victims in list(self._claims.items()):
            there = [self._models[v] for v in victims if self._models[v].state in _LEAVING]
            self._claims[name] = frozenset(v.name for v in there)
            need = self._need(self._models[name])
            if not there:
                del self._claims[name]
                if not self._models[name].may_load(now):
                    continue
                if isinstance(need, Refused) or need.within(free):
                    return [self._load(self._models[name], now)]
                self._unclaim(self._models[name], now)
            elif any(v.state is ModelState.UNLOADING for v in there):
                return []
            elif not isinstance(need, Refused):
                free -= (need - self._held(there)).no_less_than_none()
        for place, model in enumerate(self._in_order(waiting, now)):
            need = self._need(model)
            if isinstance(need, Refused) or need.within(free.no_less_than_none()):
                return [self._load(model, now)]
            if model.shrinks is not None and not model.queue and not model.light:
                model.shrinks = model.wanted_at = None  # none waits for it: none leaves for it
                continue
            if need.within(free + coming):
                return []
            if place >= _LOOKED_AT:
                continue
            chosen = self._victims(model, need.missing_from(free), len(waiting), now)
            if chosen is not None:
                return self._claim(model, chosen, now)
            first = self.look_at is not None and self._quiet_since is not None
            if first or self.rules.policy == "fifo" or self._pressing(model, model.oldest_wait_s(now)):
                return []  # none overtakes: the moment of this one comes
        return []

    def _unclaimed(self) -> Amount:
        """Bytes that are about to come free, for no model in particular."""
        if not any(m.state is ModelState.UNLOADING for m in self._models.values()):
            return Amount()
        claimed = {victim for victims in self._claims.values() for victim in victims}
        return self._held(m for m in self._models.values() if m.state is ModelState.UNLOADING and m.name not in claimed)

    def _held(self, models: Iterable[ModelRecord]) -> Amount:
        """What all of them hold."""
        return sum((self._budget.held(model.name) for model in models), Amount())

    def _in_order(self, waiting: Iterable[ModelRecord], now: float) -> list[ModelRecord]:
        def key(model: ModelRecord) -> tuple[float, ...]:
            if self.rules.policy == "fifo":
                return (min((ticket.order for ticket in model.waiting), default=0),)
            age_s = model.oldest_wait_s(now)
            pressing = self._pressing(model, age_s)
            return (-model.top_priority(), not pressing, -age_s if pressing else -age_s * (model.n_waiting + 1))

        return sorted((m for m in waiting if m.name not in self._claims), key=key)

    def _pressing(self, model: ModelRecord, age_s: float) -> bool:
        """It has waited so long that age alone counts."""
        load_s = self._typical_load_s if model.load_s is None else model.load_s
        return age_s >= min(self.rules.max_wait_s / 2, _PRESSING_LOADS * load_s)

    def _need(self, model: ModelRecord) -> Amount | Refused:
        return self.plan(model)[0]

    def plan(self, model: ModelRecord) -> tuple[Amount | Refused, int]:
        """What a load needs, and the context it is for; where that cannot be had any more it begins as ever."""
        if context := model.wanted_context:
            need = self._budget.need(model.name, smaller_by=model.smaller_by, context=context)
            if not isinstance(need, Refused):
                return need, context
        return self._budget.need(model.name, smaller_by=model.smaller_by), 0

    def _load(self, model: ModelRecord, now: float) -> Load:
        context = self.plan(model)[1]
        model.state, model.loading_since = ModelState.LOADING, now
        model.grown = context > 0
        model.claim(now)
        return Load(model.name, model.smaller_by, context)

    # Who leaves

    def _evictable(self) -> list[ModelRecord]:
        return [m for m in self._models.values() if m.state is ModelState.READY and not m.rules.pinned]

    def _victims(self, model: ModelRecord, needed: Amount, n_waiting: int, now: float) -> list[Candidate] | None:
        """The cheapest set that may leave now; None when it is too early for any, or never enough."""
        others = self._evictable()
        if self.rules.policy == "fifo":
            return self._least_recently_used(others, needed)
        idle = [other for other in others if other.idle]
        rivals = n_waiting / self._places(model, others)
        times = {other.name: self._may_leave_at(other, model, rivals, now) for other in others}
        for group in (idle, others):
            if not needed.within(self._held(group)):
                continue
            early = [times[other.name] for other in group if times[other.name] > now]
            now_free = [other for other in group if times[other.name] <= now]
            victims = choose([self._candidate(other, now) for other in now_free], needed)
            if victims is None:
                self._look(min((at for at in early if at < _NEVER), default=None))
            return victims
        return None

    def _places(self, model: ModelRecord, others: list[ModelRecord]) -> int:
        """How many models of its size have room where others are now."""
        need = self._need(model)
        if isinstance(need, Refused) or not need:
            return 1
        there = self._budget.free + self._held(others)
        sides = ((there.device, need.device), (there.host, need.host))
        return max(1, min(has // wants for has, wants in sides if wants))

    def _may_leave_at(self, resident: ModelRecord, model: ModelRecord, rivals: float, now: float) -> float:
        """When a resident's turn is over, seen from a waiting model, one of so many `rivals` for one place."""
        load_s = resident.load_s or 0.0
        turn_loads = max((_ROUND_LOADS - 1) / max(rivals, 1.0) - 1, _LEAST_TURN_LOADS)
        turn_s = min(self.rules.min_residency_s, load_s * turn_loads)
        turn_over = resident.ready_at + turn_s
        if resident.idle:
            if self._quiet_since is None:
                return turn_over
            return min(turn_over, self._quiet_since + _linger_s(resident))
        since = now - model.oldest_wait_s(now)
        if model.top_priority() > resident.top_priority():
            return since
        if model.top_priority() < resident.top_priority():
            return max(turn_over, since + self.rules.max_wait_s / 2)
        return max(turn_over, since + turn_s / 2)

    def _all_idle_since(self) -> float | None:
        """Since when nothing runs anywhere; None while something does, whose client may want an idle model next."""
        residents = [m for m in self._models.values() if m.state is ModelState.READY]
        if any(m.running or m.n_waiting for m in residents):
            return None
        return max((m.idle_since or 0.0 for m in residents), default=0.0)

    def _least_recently_used(self, others: list[ModelRecord], needed: Amount) -> list[Candidate] | None:
        victims: list[Candidate] = []
        for other in sorted(others, key=lambda m: (bool(m.running), m.idle_since or 0.0)):
            missing = needed - freed_by(victims)
            if not missing.no_less_than_none():
                break
            if helps(held := self._budget.held(other.name), missing):
                victims.append(Candidate(other.name, held, 0.0))
        return victims if needed.within(freed_by(victims)) else None

    def _candidate(self, model: ModelRecord, now: float) -> Candidate:
        score = eviction_score(load_s=model.load_s or 0.0, heat=model.heat(now), priority=model.rules.priority)
        drain_s = model.drain_s(len(model.running)) + model.n_waiting * (model.load_s or 0.0)
        return Candidate(model.name, self._budget.held(model.name), score + drain_s)

    # Leaving

    def _claim(self, model: ModelRecord, victims: list[Candidate], now: float) -> list[Action]:
        self._claims[model.name] = frozenset(victim.name for victim in victims)
        model.claim(now)
        return [self._leave(self._models[victim.name], "room", model.name) for victim in victims]

    def _leave(self, model: ModelRecord, reason: UnloadReason, beneficiary: str | None = None) -> Action:
        model.leaving = reason
        if model.running:
            model.state = ModelState.DRAINING
            return Drain(model.name, reason, beneficiary)
        model.state = ModelState.UNLOADING
        return Unload(model.name, reason, beneficiary)

    def beneficiary(self, model: str) -> str | None:
        """For which other a model leaves."""
        return next((name for name, victims in self._claims.items() if model in victims), None)

    def _relieve(self, now: float) -> list[Action]:
        """Let idle models leave until what is held is inside the budgets, as far as they go."""
        if not self.rules.relieve or not self._budget.exceeded:
            return []
        coming = self._held(m for m in self._models.values() if m.state in _LEAVING)
        needed = self._budget.over - coming
        idle = [self._candidate(model, now) for model in self._evictable() if model.idle]
        victims = choose(idle, needed)
        if victims is None:
            victims = [candidate for candidate in idle if helps(candidate.frees, needed)]
        return [self._leave(self._models[v.name], "pressure") for v in victims]

    def _look(self, at: float | None) -> None:
        if at is not None:
            self.look_at = at if self.look_at is None else min(self.look_at, at)


def _linger_s(model: ModelRecord) -> float:
    """How long an idle model's next request is worth waiting for."""
    load_s = model.load_s or 0.0
    likely_s = 2 * model.think_s if model.think_s is not None and 4 * model.think_s <= load_s else 0.0
    return max(_LINGER_LOADS * load_s, likely_s)
