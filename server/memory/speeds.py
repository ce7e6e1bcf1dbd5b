"""The speed estimate of a plan: from what this machine was measured to do, corrected by what loaded models did on it.

A backend's rates are measured once and kept under the machine's fingerprint in the file of `server.memory.learned`.
Real steps then teach how many times the predicted seconds they take: of a plan, of a file, of all files of a backend.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec.structs import astuple

from backends.backend import version_of
from backends.border import rates
from backends.machine import host
from backends.registry import BACKENDS, TEST_ENGINE, backend_of
from backends.speed import Machine, with_assumed_card

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backends.messages import LoadPlan
    from backends.speed import Speed
    from server.memory.files import FileFacts
    from server.memory.learned import Learned

SpeedSource = Literal["measured", "learned", "computed", "rough", "assumed"]
Phase = Literal["decode", "prefill"]
AGAIN_AFTER_S: Final = 3600.0
"""A rough measurement stands so long before a quieter moment is tried."""
MEASURED_AS: Final = 4
"""Counts up when rates come to mean something else: those of before are worth nothing then."""
_KEPT: Final = 9
"""Windows of which the median counts."""
_LEAST_RATIO, _MOST_RATIO = 0.01, 100.0


class SpeedStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one request alone gets of a plan, in tokens per second."""

    decode_tokens_per_s: float
    """With 512 tokens before it, or a full context where that is shorter."""
    full_decode_tokens_per_s: float
    """At the end of the context."""
    prefill_tokens_per_s: float
    """Of a prompt of 1024 tokens, or a full context where that is shorter."""
    source: SpeedSource
    """`measured`: of this plan; `learned`: of other plans or models here; `computed`: from what this machine was
    measured to do; `rough`: the same while other programs held its cores; `assumed`: of a card that is not here."""


@dataclass(frozen=True)
class SpeedEstimate:
    """The speed of a plan, and where it comes from."""

    speed: Speed
    source: SpeedSource

    @property
    def status(self) -> SpeedStatus:
        """For people and for JSON."""
        return SpeedStatus(
            decode_tokens_per_s=rounded(self.speed.decode_per_s()),
            full_decode_tokens_per_s=rounded(self.speed.decode_per_s(self.speed.context)),
            prefill_tokens_per_s=rounded(self.speed.prefill_per_s()),
            source=self.source,
        )


class SpeedEstimator:
    """The speeds of one machine. `onecard fit` uses it without a server."""

    def __init__(self, learned: Learned, *, engine: str | None = None, clock: Callable[[], float] = time.time) -> None:
        """`engine`: which build of its engine every figure is of; None asks the model's backend."""
        self._clock = clock
        self._learned = learned
        self._engine = engine
        self._machines: dict[str, Machine | None] = {}
        self.version = 0
        """Counts up with every measurement of the machine; what steps teach counts at the next load."""

    # What the machine does

    async def measure(self, backends: Iterable[str]) -> list[str]:
        """Measure what is not known yet; the backends whose rates are new. Rough ones are measured again."""
        new: list[str] = []
        for name in dict.fromkeys(backends):
            speeds = BACKENDS[name].speeds
            if speeds is None or not self.wants(name):
                continue
            if (machine := await rates.ask(speeds.program)) is not None:
                self.keep(name, machine)
                new.append(name)
        return new

    def wants(self, backend: str) -> bool:
        """Whether the machine is to be measured for the backend's engine."""
        if TEST_ENGINE in os.environ:  # whatever tests load with, no engine is measured for it
            return False
        if BACKENDS[backend].speeds is None or (known := self.machine(backend)) is None:
            return BACKENDS[backend].speeds is not None
        at = self._learned.get("rates_at", self.key(backend))
        return known.source != "measured" and not (isinstance(at, int) and 0 <= self._clock() - at < AGAIN_AFTER_S)

    def keep(self, backend: str, machine: Machine) -> None:
        """These are its rates from now on."""
        self._learned.put("rates", self.key(backend), msgspec.to_builtins(machine))
        self._learned.put("rates_at", self.key(backend), int(self._clock()))
        self._machines[backend] = machine
        self.version += 1

    def save(self) -> None:
        """Keep everything for the next run; blocks on the disk."""
        self._learned.save()

    def machine(self, backend: str) -> Machine | None:
        """The rates as last measured; None where they never were."""
        if backend not in self._machines:
            told = self._learned.get("rates", self.key(backend))
            try:
                self._machines[backend] = msgspec.convert(told, Machine) if told is not None else None
            except msgspec.ValidationError:  # of another version: it is measured again
                self._machines[backend] = None
        return self._machines[backend]

    def source(self, backend: str) -> SpeedSource | None:
        """Where the backend's rates come from; None where they are not known."""
        machine = self.machine(backend)
        return None if machine is None else _SOURCES[machine.source]

    # What a plan does

    def computed(self, facts: FileFacts, plan: LoadPlan) -> SpeedEstimate | None:
        """From the machine's rates alone; None where they are not known, or the model generates no text."""
        backend = backend_of(facts.header)
        machine = self.machine(backend.name)
        if backend.speeds is None or machine is None:
            return None
        if plan.device == "cuda":
            machine = with_assumed_card(machine)
        speed = backend.speeds.speed(facts.header, plan, machine)
        return None if speed is None else SpeedEstimate(speed, _SOURCES[machine.source])

    def estimate(self, facts: FileFacts, plan: LoadPlan) -> SpeedEstimate | None:
        """The best there is, at once."""
        found = self.computed(facts, plan)
        if found is None:
            return None
        decode, source = self._ratio("decode", facts, plan)
        prefill, _ = self._ratio("prefill", facts, plan)
        return SpeedEstimate(found.speed.times(decode=decode, prefill=prefill), source or found.source)

    def of(self, facts: FileFacts) -> Callable[[LoadPlan], Speed | None]:
        """The speeds of one model's plans."""

        def speed(plan: LoadPlan) -> Speed | None:
            found = self.estimate(facts, plan)
            return None if found is None else found.speed

        return speed

    # What loaded models teach

    def learn(self, facts: FileFacts, plan: LoadPlan, phase: Phase, ratio: float) -> None:
        """Steps took so many times the computed seconds; the estimator's own `save` keeps it."""
        if not _LEAST_RATIO <= ratio <= _MOST_RATIO:
            return
        for section, key in self._levels(facts, plan):
            kept = _ratios(self._learned.get(f"{phase}_{section}", key))
            self._learned.put(f"{phase}_{section}", key, [*kept, round(ratio, 4)][-_KEPT:])

    def _ratio(self, phase: Phase, facts: FileFacts, plan: LoadPlan) -> tuple[float, SpeedSource | None]:
        """How many times the computed seconds, by the nearest of what was measured."""
        for section, key in self._levels(facts, plan):
            if kept := _ratios(self._learned.get(f"{phase}_{section}", key)):
                return statistics.median(kept), "measured" if section == "speeds" else "learned"
        return 1.0, None

    def _levels(self, facts: FileFacts, plan: LoadPlan) -> list[tuple[str, str]]:
        """Where a plan's figures are kept: its own, its file's, its backend's on this machine."""
        base = f"{self._rates_id(facts)} {plan.device}"
        file = f"{base} {' '.join(map(str, facts.key))}"
        return [("speeds", f"{file} {astuple(plan)}"), ("file_speeds", file), ("backend_speeds", base)]

    def _rates_id(self, facts: FileFacts) -> str:
        """Ratios are of one measurement of the machine, and worth nothing beside another."""
        machine = self.machine(facts.header.backend)
        told = msgspec.json.encode(machine) if machine is not None else b""
        return f"{self.key(facts.header.backend)} {hashlib.sha256(told).hexdigest()[:12]}"

    def key(self, backend: str) -> str:
        """The machine's fingerprint, and the engine that was measured."""
        engine = version_of(BACKENDS[backend]) if self._engine is None else self._engine
        return f"{host.processor()} {host.installed_bytes() >> 30}GiB {backend} {engine} rates {MEASURED_AS}"


_SOURCES: Final[dict[str, SpeedSource]] = {"measured": "computed", "rough": "rough", "assumed": "assumed"}


def _ratios(value: Any) -> list[float]:
    kept = value if isinstance(value, list) else []
    return [float(n) for n in kept if isinstance(n, (int, float)) and _LEAST_RATIO <= n <= _MOST_RATIO]


def rounded(per_s: float) -> float:
    """Three figures: an estimate has no more."""
    return float(f"{per_s:.3g}")
