"""What a plan costs in bytes, from the best that is known: measured before, told by a dry load, or computed.

Estimates are instant: `backends.dry` finds out more meanwhile, and what it finds is noted here. Owns what was learned.
"""

from __future__ import annotations

import os
import statistics
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from backends.backend import version_of
from backends.plan import footprint_on
from backends.registry import TEST_ENGINE, backend_of
from server.memory.learned import Learned

if TYPE_CHECKING:
    from backends.backend import Header
    from backends.dry import DrySizes
    from backends.plan import Device, Footprint, LoadPlan, Parts

Source = Literal["measured", "dry", "header"]
FileKey = tuple[int, int, int]
"""Size, time of change in ns, inode: another file is another model."""

_ROUNDED_BYTES: Final = 3 * 5300
"""llama.cpp tells sizes in hundredths of a MiB; closer than this, arithmetic is the more exact."""
_KEPT_RUNTIMES: Final = 9
_LEAST_DOUBT_BYTES: Final = 64 * 2**20
_LEAST_DOUBT: Final = 1 / 16
"""Of the price; doubled with every load that runs out of memory."""


@dataclass(frozen=True)
class Estimate:
    """A price and where it comes from."""

    footprint: Footprint
    source: Source
    device: Device
    doubt_bytes: int = 0
    """What it may take beyond that: a load at this price has run out of memory, and none has been measured since."""

    def within(self, n_bytes: int) -> Footprint:
        """The price with its doubt, of which no more counts than leaves the plan possible in so many bytes."""
        doubt = min(self.doubt_bytes, max(0, n_bytes - self.footprint.total_bytes))
        parts = self.footprint.on(self.device)
        return footprint_on(self.device, replace(parts, runtime=parts.runtime + doubt))


class Estimates:
    """The estimates of one machine."""

    def __init__(self, learned: Learned | None = None, *, engine: str | None = None) -> None:
        """`engine`: which build of its engine every figure is of; None asks the model's backend."""
        self.learned = learned or Learned()
        self._engine = os.environ.get(TEST_ENGINE) if engine is None else engine
        self._memo: dict[tuple[FileKey, LoadPlan], Estimate] = {}
        self.version = 0
        """Counts up with every change of a price."""

    def quote(self, file: FileKey, header: Header, plan: LoadPlan) -> Estimate:
        """The price of a plan for a file."""
        if (known := self._memo.get((file, plan))) is not None:
            return known
        self._memo[file, plan] = quote = self._quote(file, header, plan)
        return quote

    def has_dry(self, file: FileKey, header: Header, plan: LoadPlan) -> bool:
        """Whether a dry load of the plan is on the books, or known to be refused."""
        return self.learned.get("dry", self._key(file, header, plan)) is not None

    def note_dry(self, file: FileKey, header: Header, plan: LoadPlan, sizes: DrySizes | None) -> None:
        """Keep what a dry load told; None where the library refused."""
        told = sizes.on(plan.device) if sizes is not None else {}
        self.learned.put("dry", self._key(file, header, plan), told)
        self._changed()

    def learn(self, file: FileKey, header: Header, plan: LoadPlan, measured_bytes: int) -> int:
        """Keep what a loaded plan takes; by how many bytes it missed the price, signed."""
        before = self.quote(file, header, plan).footprint.on(plan.device)
        known = before.total_bytes - before.runtime
        runtime = max(0, measured_bytes - known)
        self.learned.put("measured", self._key(file, header, plan), measured_bytes)
        self.learned.put("doubt", self._key(file, header, plan), 0)
        self.learned.put("runtime", self._key(file, header), runtime)
        section, name = "machine", self._machine(header, plan)
        kept = _numbers(self.learned.get(section, name))
        backend = backend_of(header)
        vocabulary = backend.estimate(header, plan).on(plan.device).runtime - backend.runtime_bytes(header, plan)
        self.learned.put(section, name, [*kept, max(0, runtime - vocabulary)][-_KEPT_RUNTIMES:])
        self._changed()
        return measured_bytes - before.total_bytes

    def doubt(self, file: FileKey, header: Header, plan: LoadPlan) -> int:
        """A load of the plan has run out of memory: until one is measured its price counts more, by so many bytes.

        A price that was measured stands: then it is the memory that others have taken.
        """
        quote = self.quote(file, header, plan)
        if quote.source == "measured":
            return 0
        least = max(_LEAST_DOUBT_BYTES, round(_LEAST_DOUBT * quote.footprint.total_bytes))
        doubt_bytes = max(least, 2 * quote.doubt_bytes)
        self.learned.put("doubt", self._key(file, header, plan), doubt_bytes)
        self._changed()
        return doubt_bytes

    def _changed(self) -> None:
        self._memo.clear()
        self.version += 1

    def _quote(self, file: FileKey, header: Header, plan: LoadPlan) -> Estimate:
        parts, source = self._told(file, header, plan)
        known = parts.total_bytes - parts.runtime
        measured = self.learned.get("measured", self._key(file, header, plan))
        if _is_size(measured) and measured >= known:
            return Estimate(_on(plan, replace(parts, runtime=measured - known)), "measured", plan.device)
        of_file = self.learned.get("runtime", self._key(file, header))
        runtime = of_file if _is_size(of_file) else self._usual_runtime(parts, header, plan)
        doubt = self.learned.get("doubt", self._key(file, header, plan))
        kept = doubt if _is_size(doubt) else 0
        return Estimate(_on(plan, replace(parts, runtime=runtime)), source, plan.device, kept)

    def _told(self, file: FileKey, header: Header, plan: LoadPlan) -> tuple[Parts, Source]:
        """Without what was measured."""
        backend = backend_of(header)
        parts = backend.estimate(header, plan).on(plan.device)
        told = self.learned.get("dry", self._key(file, header, plan))
        if not isinstance(told, dict) or not all(_is_size(told.get(name)) for name in ("weights", "cache", "compute")):
            return parts, "header"
        share = backend.layer_share(header, plan)
        cache = round(told["cache"] * share)
        return replace(
            parts,
            weights=told["weights"] if plan.device == "cpu" else parts.weights,
            kv=parts.kv if abs(cache - parts.kv) <= _ROUNDED_BYTES else cache + _ROUNDED_BYTES,
            compute=told["compute"] + _ROUNDED_BYTES,
        ), "dry"

    def _usual_runtime(self, parts: Parts, header: Header, plan: LoadPlan) -> int:
        """The constant of the first time is replaced by this machine's median."""
        kept = _numbers(self.learned.get("machine", self._machine(header, plan)))
        if not kept:
            return parts.runtime
        return parts.runtime - backend_of(header).runtime_bytes(header, plan) + round(statistics.median(kept))

    def _machine(self, header: Header, plan: LoadPlan) -> str:
        """The name under which the process itself is priced: libraries differ by backend and by what a model gives."""
        gives = "text" if header.gives == "text" else "vectors"
        return f"{plan.device} {header.backend} {self._engine_of(header)} {gives}"

    def _key(self, file: FileKey, header: Header, plan: LoadPlan | None = None) -> str:
        words = [*file, *(astuple(plan) if plan is not None else ()), self._engine_of(header)]
        return " ".join(str(word) for word in words)

    def _engine_of(self, header: Header) -> str:
        """Which build of the engine the figures are of; another one may take other amounts."""
        return version_of(backend_of(header)) if self._engine is None else self._engine


def _on(plan: LoadPlan, parts: Parts) -> Footprint:
    return footprint_on(plan.device, parts)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**50


def _numbers(value: Any) -> list[int]:
    return [n for n in value if _is_size(n)] if isinstance(value, list) else []
