"""How models come and go: performs the scheduler's loads and unloads, and learns from how they went.

Owns no state but what it writes into the residents and the ledger. For the event loop's thread only.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from backends.machine.crash_reason import in_words
from backends.plan import Amount
from server.memory.ledger import Tenant
from server.pool.event_log import why
from server.pool.loader import LoadRefusedError
from server.pool.status import Drafted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backends.border.worker import Exit, Listener, Worker
    from backends.messages import ErrorCode, LoadModel, Ready
    from backends.plan import Footprint
    from server.memory.files import FileKey
    from server.pool.parts import PoolParts
    from server.pool.resident import Resident
    from server.scheduling.decisions import Drain, Grow, Load, Unload

_HINT: Final = "hint: end what else uses the memory, or configure a smaller context, parallel or kv_type"
TELL_LOAD_EVERY_S: Final = 2.0
_LOG = logging.getLogger("onecard.pool")


class Moves:
    """See the module's text. `listener` hears the workers."""

    def __init__(self, parts: PoolParts, listener: Listener) -> None:
        self._parts = parts
        self._listener = listener

    # What the scheduler wants

    def begin_load(self, resident: Resident, action: Load) -> None:
        """Start the model's worker."""
        smaller_by, context = action.smaller_by, action.context
        budget = self._parts.budget
        resident.load_started_at = self._parts.clock()
        resident.load_cancelled = False
        resident.loaded = 0.0
        resident.tried_key = self._state_now(resident)
        need = budget.need(resident.name, smaller_by=smaller_by, context=context)
        figures = self._parts.figures("need", need) if isinstance(need, Amount) and need else {}
        again = {"smaller_by": smaller_by} if smaller_by else {}
        again |= {"for_context": context} if context else {}
        self._parts.tell("loading", model=resident.name, **figures, **self._parts.figures("free", budget.free), **again)
        self._parts.spawn(self._load(resident, action))

    def cancel_load(self, resident: Resident) -> None:
        """Give up a load under way."""
        self._parts.tell("load_cancelled", model=resident.name, reason="no request waits for it any more")
        resident.load_cancelled = True
        if resident.worker is not None:
            self._parts.spawn(resident.worker.stop())

    def begin_drain(self, action: Drain) -> None:
        """The model takes no new jobs; there is nothing to do but to tell."""
        self._parts.tell("drains", model=action.model, **why(action))

    def begin_unload(self, resident: Resident, action: Unload) -> None:
        """Stop the model's worker."""
        assert resident.worker is not None
        resident.metrics.evictions[action.reason].inc()
        if action.reason == "shrink":
            resident.metrics.growths["shrunk"].inc()
        evicted = action.reason in ("room", "ttl", "pressure")
        budget = self._parts.budget
        figures = {**why(action), **self._parts.figures("freed", budget.held(action.model))}
        need = budget.need(action.beneficiary, smaller_by=0) if action.beneficiary else Amount()
        self._parts.memory.before_leaving(action.model, needed=need if isinstance(need, Amount) else Amount())
        self._parts.tell("evicted" if evicted else "unloading", model=action.model, **figures)
        self._parts.spawn(resident.worker.stop())

    def begin_growth(self, action: Grow) -> None:
        """A job waits for a longer context of its model; there is nothing to do but to tell."""
        resident, budget = self._parts.residents[action.model], self._parts.budget
        resident.metrics.growths["grown"].inc()
        need = budget.need(action.model, smaller_by=0, context=action.context)
        figures = self._parts.figures("need", need) if isinstance(need, Amount) else {}
        self._parts.tell(
            "growing",
            model=action.model,
            reason="a request needs a longer context",
            **({"context": ready.text.context} if (ready := resident.ready) and ready.text is not None else {}),
            needs_context=action.context,
            running=action.running,
            **({"preempts_in_s": round(action.patience_s, 3)} if action.running else {}),
            **figures,
            **self._parts.figures("held", budget.held(action.model)),
            **self._parts.figures("free", budget.free),
        )

    def pardon_if_repaired(self, resident: Resident) -> None:
        """Files that have changed since they failed are no reason to leave the model alone: one look at them."""
        if resident.tried_key is None or not self._parts.scheduler.paused(resident.name, self._parts.clock()):
            return
        now = self._state_now(resident)
        if now is not None and now != resident.tried_key:
            self._parts.tell("quarantine_lifted", model=resident.name, reason="its files have changed")
            self._parts.scheduler.pardon(resident.name)

    def _state_now(self, resident: Resident) -> FileKey | None:
        return self._parts.budget.files.state_now(resident.entry)

    # What workers report

    def on_progress(self, resident: Resident, share: float) -> None:
        """A share of a load is done; of a long load an event tells it every few seconds."""
        resident.loaded = share
        now = self._parts.clock()
        if now - max(resident.load_started_at, resident.load_told_at) < TELL_LOAD_EVERY_S:
            return
        resident.load_told_at = now
        left_s = resident.left_of_load_s(now)
        left = {"left_s": round(left_s, 1)} if left_s is not None else {}
        self._parts.tell("load_progress", model=resident.name, percent=round(100 * share), **left)

    def on_ready(self, worker: Worker, ready: Ready) -> None:
        """A model is loaded."""
        parts, name, now = self._parts, worker.spec.name, self._parts.clock()
        resident = parts.residents[name]
        resident.ready, resident.ready_at, resident.drafted = ready, now, Drafted()
        load_s = resident.last_load_s = now - resident.load_started_at
        assert parts.loader is not None
        reservation = parts.loader.settle(worker.spec, ready)
        parts.spawn(parts.budget.estimator.save())
        parts.foretell_speed(resident)
        on_card = parts.memory.device == "cuda"
        parts.metrics.count_errors(resident.entry.backend, reservation.device.error_ratio, reservation.host.error_ratio)
        ratio = (reservation.device if on_card else reservation.host).error_ratio
        resident.count_ready(reservation, load_s)
        parts.tell(
            "loaded",
            model=name,
            seconds=round(load_s, 3),
            **({"context": ready.text.context} if ready.text is not None else {}),
            parallel=ready.parallel,
            **({"gpu_layers": f"{ready.layers.on_card}/{ready.layers.total}"} if ready.layers is not None else {}),
            **resident.kept_from_card,
            measured_bytes=ready.measured_bytes,
            **({"measured_host_bytes": reservation.host.measured_bytes or 0} if on_card else {}),
            predicted_ratio="unknown" if ratio is None else round(ratio, 3),
            **_foretold(resident),
            **(ready.file.told(ready.load_s) if ready.file is not None else {}),
            pid=worker.pid,
        )
        if ready.generator is not None and (error := ready.generator.store_error):
            parts.tell("prefix_cache_off", model=name, reason=error, hint="prompts are computed every time")
        parts.budget.forget(name)
        parts.memory.share_out()
        context = ready.text.context if ready.text is not None else 0
        parts.perform(parts.scheduler.on_ready(name, parallel=ready.parallel, now=now, context=context))
        resident.tell_loaded()

    def on_exit(self, worker: Worker, how: Exit, *, retry: frozenset[str]) -> None:
        """A worker is gone and reaped: its bytes are free, and the scheduler may start another."""
        parts, name = self._parts, worker.spec.name
        resident = parts.residents[name]
        resident.worker = None
        if resident.meter is not None:  # what its steps taught
            parts.spawn(parts.budget.estimator.save())
        freed = parts.budget.held(name)
        reservation = parts.memory.ledger.reservation(Tenant(name))
        parts.memory.release(name)
        if how.code == "out_of_memory" and worker.ready is None and reservation is not None:
            how = self._explain(worker.spec, how, reservation.predicted)
        parts.budget.forget(name)
        parts.tell(
            resident.count_exit(how, was_ready=worker.ready is not None),
            model=name,
            **self._parts.figures("freed", freed),
            **({"code": how.code, "reason": how.message} if how.code else {}),
        )
        error = None if how.code is None else (how.code, how.message)
        parts.perform(parts.scheduler.on_gone(name, now=parts.clock(), error=error, retry=retry))
        comes_again = parts.scheduler.wanted(name)
        if how.code is not None:
            resident.tell_gone(how.code, how.message)
        else:
            resident.tell_gone(*self._given_up(name), comes_again=comes_again)

    # What is known of the files

    async def inspect(self, residents: Sequence[Resident]) -> None:
        """Look at the files of these models, as far as there still are such models."""
        for resident in residents:
            if resident.is_one_of(self._parts.residents):
                await self._parts.budget.inspect(resident.entry)

    async def ask_dry(self) -> None:
        """Ask for the exact sizes of the models whose files have been looked at; some turn out to be unusable."""
        refused = await self._parts.budget.ask_dry(resident.entry for resident in self._parts.residents.values())
        for name in self._parts.residents:
            self._parts.budget.forget(name)
        for name, reason in refused.items():
            self._parts.tell("unusable", model=name, reason=reason)

    # How

    async def _load(self, resident: Resident, action: Load) -> None:
        loader = self._parts.loader
        assert loader is not None
        usable = self._parts.budget.usable(resident.name)
        try:
            resident.worker = await loader.start(
                resident.entry, self._listener, usable=usable, smaller_by=action.smaller_by, context=action.context
            )
            if resident.load_cancelled:
                await resident.worker.stop()
        except LoadRefusedError as refused:
            self._refused(resident, refused.code, refused.message, strike=refused.strike)
        except Exception as error:  # a fault of ours must not leave the model loading for ever
            _LOG.exception("load_error model=%s", resident.name)
            self._refused(resident, "internal_error", f"the load failed: {in_words(error)}", strike=True)

    def _refused(self, resident: Resident, code: ErrorCode, message: str, *, strike: bool) -> None:
        parts, name = self._parts, resident.name
        if resident.load_cancelled:  # what it failed for is of no interest any more
            resident.metrics.loads["cancelled"].inc()
            parts.perform(parts.scheduler.on_gone(name, now=parts.clock()))
            resident.tell_gone(*self._given_up(name), comes_again=parts.scheduler.wanted(name))
            return
        resident.count_load_failure(code)
        parts.budget.forget(name)
        parts.tell("load_refused", model=name, code=code, reason=message)
        parts.perform(parts.scheduler.on_gone(name, now=parts.clock(), error=(code, message), strike=strike))
        resident.tell_gone(code, message)

    def _given_up(self, name: str) -> tuple[ErrorCode, str]:
        """Why a load ended that nothing was wrong with, for who waits for it."""
        if self._parts.scheduler.draining:
            return "draining", "the server is shutting down"
        return "cancelled", f"the load of '{name}' was given up: the model was unloaded meanwhile. hint: load it again"

    def _explain(self, spec: LoadModel, how: Exit, predicted: Footprint) -> Exit:
        """A load that ran out of memory, told with its plan, whose estimate is doubted from now on."""
        assert self._parts.loader is not None
        plan = self._parts.loader.ran_out(spec, predicted)
        self._parts.spawn(self._parts.budget.estimator.save())
        message = f"model '{spec.name}' ran out of memory while it loaded ({how.message}): {plan}. {_HINT}"
        return replace(how, message=message)


def _foretold(resident: Resident) -> dict[str, float]:
    """The speed that is foretold of a loaded model."""
    if resident.meter is None:
        return {}
    told = resident.meter.status
    return {"decode_tokens_per_s": told.decode_tokens_per_s, "prefill_tokens_per_s": told.prefill_tokens_per_s}
