"""The memory estimate of a plan, from the best that is known: measured before, told by a dry load, or computed.

An estimate is instant. Dry loads tell meanwhile what arithmetic cannot know, and every load teaches. What was learned
is kept between runs (`server.memory.learned`).
"""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec.structs import astuple

from backends.backend import HeaderError, version_of
from backends.border import dry
from backends.messages import GeneratorPlan, TextPlan
from backends.plan import Amount, Footprint
from backends.registry import TEST_ENGINE, backend_of
from server.memory.files import FileReader
from server.memory.learned import Learned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from backends.backend import Header
    from backends.border.dry import DrySizes
    from backends.messages import LoadPlan
    from backends.plan import Parts
    from server.memory.files import FileFacts, FileKey

Source = Literal["measured", "dry", "header"]
Side = Literal["device", "host"]

_REFUSED: Final = "hint: its metadata and tensors are not of one model; take the publisher's file, or convert it again"
MOST_DRY_PLANS: Final = 24
"""Per model; those that placement tries first."""
_ROUNDED_BYTES: Final = 3 * 5300
"""llama.cpp tells sizes in hundredths of a MiB; closer than this, arithmetic is the more exact."""
_KEPT_RUNTIMES: Final = 9
_LEAST_DOUBT_BYTES: Final = 64 * 2**20
_LEAST_DOUBT: Final = 1 / 16
"""Of the estimate; doubled with every load that runs out of memory."""


@dataclass(frozen=True)
class Estimate:
    """A footprint and where it comes from."""

    footprint: Footprint
    source: Source
    doubt: Amount = Amount()  # noqa: RUF009 - frozen
    """What it may take beyond that: a load has run out of memory, and none has been measured since."""

    def within(self, room: Amount) -> Footprint:
        """The footprint with its doubt, of which no more counts than leaves the plan possible in so many bytes."""
        amount = self.footprint.amount
        device = min(self.doubt.device, max(0, room.device - amount.device))
        host = min(self.doubt.host, max(0, room.host - amount.host))
        parts = self.footprint
        return Footprint(
            replace(parts.device, runtime=parts.device.runtime + device),
            replace(parts.host, runtime=parts.host.runtime + host),
        )


class Estimator:
    """The estimates of one machine. Owns no memory and no model: `onecard fit` uses it without a server."""

    def __init__(self, learned: Learned | None = None, *, engine: str | None = None) -> None:
        """`engine`: which build of its engine every figure is of; None asks the model's backend."""
        self.learned = learned or Learned()
        self._engine = os.environ.get(TEST_ENGINE) if engine is None else engine
        self._memo: dict[tuple[tuple[int, ...], LoadPlan], Estimate] = {}
        self._saver = FileReader()
        self.version = 0
        """Counts up with every change of an estimate."""
        self.refused: dict[FileKey, str] = {}
        """Files that the engine itself refuses in a dry load, with its sentence."""

    def estimate(self, facts: FileFacts, plan: LoadPlan) -> Estimate:
        """The best there is, at once."""
        if (known := self._memo.get((facts.key, plan))) is not None:
            return known
        self._memo[facts.key, plan] = made = self._estimate(facts, plan)
        return made

    def of(self, facts: FileFacts, *, within: Amount) -> Callable[[LoadPlan], Footprint]:
        """The footprints of one model's plans, with the doubts that leave them possible in so many bytes."""
        return lambda plan: self.estimate(facts, plan).within(within)

    # What dry loads tell

    async def ask_dry(self, models: Iterable[tuple[FileFacts, Sequence[LoadPlan]]]) -> None:
        """Let one patient child tell exact sizes; a child that fails leaves the computed ones."""
        if TEST_ENGINE in os.environ:  # whatever tests load with, it is not llama.cpp
            return
        asked = {question: facts for facts, wanted in models for question in self._questions(facts, wanted)}

        def note(question: dry.DryQuestion, why: str) -> None:
            self.refused[asked[question].key] = f"{why}. {_REFUSED}"

        async with contextlib.aclosing(dry.ask(list(asked), on_refused=note)) as answers:  # its child ends with it
            async for question, answer in answers:
                facts = asked[question]
                for plan, sizes in zip(question.plans, answer, strict=True):
                    self.note_dry(facts, plan, sizes)
        if asked:
            await self.save()

    def has_dry(self, facts: FileFacts, plan: LoadPlan) -> bool:
        """Whether a dry load of the plan is known, or known to be refused."""
        return self.learned.get("dry", self._key(facts, plan)) is not None

    def note_dry(self, facts: FileFacts, plan: LoadPlan, sizes: DrySizes | None) -> None:
        """Keep what a dry load told; None where the library refused."""
        told = sizes.on(plan.device) if sizes is not None else {}
        self.learned.put("dry", self._key(facts, plan), told)
        self._changed()

    def _questions(self, facts: FileFacts, wanted: Sequence[LoadPlan]) -> list[dry.DryQuestion]:
        """The plans whose exact sizes are missing, those with the same weights on the GPU together."""
        module = backend_of(facts.header).dry
        if module is None:
            return []
        likely = [plan for plan in wanted[:MOST_DRY_PLANS] if isinstance(plan, TextPlan)]
        missing = [plan for plan in likely if not self.has_dry(facts, plan)]
        alike: dict[tuple[int, ...], list[TextPlan]] = {}
        for plan in missing:
            kept = (plan.expert_layers, plan.ffn_layers) if isinstance(plan, GeneratorPlan) else ()
            alike.setdefault((plan.gpu_layers, *kept), []).append(plan)
        return [dry.DryQuestion(module, facts.path, tuple(plans)) for plans in alike.values()]

    # What loads teach

    def learn(self, facts: FileFacts, plan: LoadPlan, measured: Amount) -> None:
        """Remember what a loaded plan really takes, 0 for what is not known; `save` keeps it."""
        before, header = self.estimate(facts, plan).footprint, facts.header
        backend = backend_of(header)
        computed, bare = backend.estimate(header, plan), backend.runtime_bytes(header, plan)
        sides: tuple[tuple[Side, int], ...] = (("device", measured.device), ("host", measured.host))
        for side, n_bytes in sides:
            if n_bytes <= 0:
                continue
            runtime = max(0, n_bytes - _known(_side(before, side)))
            self._put("measured", plan, side, self._key(facts, plan), n_bytes)
            self._put("doubt", plan, side, self._key(facts, plan), 0)
            self._put("runtime", plan, side, self._key(facts), runtime)
            machine = self._machine(header, plan)
            kept = _numbers(self._get("machine", plan, side, machine))
            vocabulary = _side(computed, side).runtime - getattr(bare, side)
            self._put("machine", plan, side, machine, [*kept, max(0, runtime - vocabulary)][-_KEPT_RUNTIMES:])
        self._changed()

    def doubt(self, facts: FileFacts, plan: LoadPlan) -> int:
        """A load of the plan has run out of memory: until one is measured its estimate counts more, by so many bytes.

        The doubt is about the memory in which the model computes. An estimate that was measured stands: then it is the
        memory that others have taken.
        """
        estimate = self.estimate(facts, plan)
        if estimate.source == "measured":
            return 0
        side: Side = "device" if plan.device == "cuda" else "host"
        least = max(_LEAST_DOUBT_BYTES, round(_LEAST_DOUBT * getattr(estimate.footprint.amount, side)))
        doubt_bytes: int = max(least, 2 * getattr(estimate.doubt, side))
        self._put("doubt", plan, side, self._key(facts, plan), doubt_bytes)
        self._changed()
        return doubt_bytes

    async def save(self) -> None:
        """Keep what has been learned for the next run."""
        with contextlib.suppress(HeaderError):  # a disk that hangs costs what was learned, and one thread
            await self._saver.read("learned", self.learned.save)

    # How

    def _changed(self) -> None:
        self._memo.clear()
        self.version += 1

    def _estimate(self, facts: FileFacts, plan: LoadPlan) -> Estimate:
        told, source = self._told(facts, plan)
        parts, doubts = {}, {}
        main: Side = "device" if plan.device == "cuda" else "host"
        for side in ("device", "host"):
            parts[side], doubts[side], was_measured = self._side(facts, plan, side, _side(told, side))
            source = "measured" if was_measured and side == main else source
        return Estimate(Footprint(**parts), source, Amount(**doubts))

    def _side(self, facts: FileFacts, plan: LoadPlan, side: Side, parts: Parts) -> tuple[Parts, int, bool]:
        """One memory's part, what it is doubted by, and whether it was measured."""
        if parts.total_bytes == 0:
            return parts, 0, False
        known = _known(parts)
        measured = self._get("measured", plan, side, self._key(facts, plan))
        if _is_size(measured) and measured >= known:
            return replace(parts, runtime=measured - known), 0, True
        of_file = self._get("runtime", plan, side, self._key(facts))
        runtime = of_file if _is_size(of_file) else self._usual_runtime(facts.header, plan, side, parts)
        doubt = self._get("doubt", plan, side, self._key(facts, plan))
        return replace(parts, runtime=runtime), doubt if _is_size(doubt) else 0, False

    def _told(self, facts: FileFacts, plan: LoadPlan) -> tuple[Footprint, Source]:
        """Without what was measured."""
        backend = backend_of(facts.header)
        computed = backend.estimate(facts.header, plan)
        told = self.learned.get("dry", self._key(facts, plan))
        if not isinstance(told, dict) or not all(_is_size(told.get(name)) for name in ("weights", "cache", "compute")):
            return computed, "header"
        share = backend.card_share(facts.header, plan)
        if plan.device == "cpu":
            host = replace(_dry(computed.host, told["cache"], told["compute"]), weights=told["weights"])
            return Footprint(host=host), "dry"
        device = _dry(computed.device, round(told["cache"] * share), told["compute"])
        host_compute = told.get("host_compute")
        host = _dry(computed.host, round(told["cache"] * (1 - share)), host_compute if _is_size(host_compute) else None)
        return Footprint(device, host), "dry"

    def _usual_runtime(self, header: Header, plan: LoadPlan, side: Side, parts: Parts) -> int:
        """The constant of the first time is replaced by this machine's median."""
        kept = _numbers(self._get("machine", plan, side, self._machine(header, plan)))
        if not kept:
            return parts.runtime
        bare: int = getattr(backend_of(header).runtime_bytes(header, plan), side)
        return parts.runtime - bare + round(statistics.median(kept))

    def _get(self, section: str, plan: LoadPlan, side: Side, key: str) -> Any:
        return self.learned.get(_section(section, plan, side), key)

    def _put(self, section: str, plan: LoadPlan, side: Side, key: str, value: Any) -> None:
        self.learned.put(_section(section, plan, side), key, value)

    def _machine(self, header: Header, plan: LoadPlan) -> str:
        """The name under which the process itself is known: libraries differ by backend and by sort of model."""
        sort = plan.__struct_config__.tag
        return f"{plan.device} {header.backend} {self._engine_of(header)} {sort}"

    def _key(self, facts: FileFacts, plan: LoadPlan | None = None) -> str:
        words = [*facts.key, *(astuple(plan) if plan is not None else ()), self._engine_of(facts.header)]
        return " ".join(str(word) for word in words)

    def _engine_of(self, header: Header) -> str:
        """Which build of the engine the figures are of; another one may take other amounts."""
        return version_of(backend_of(header)) if self._engine is None else self._engine


def _section(name: str, plan: LoadPlan, side: Side) -> str:
    """Of a machine without a card plainly the name; a card's two memories have sections of their own."""
    return name if plan.device == "cpu" else f"{side}_{name}"


def _side(footprint: Footprint, side: Side) -> Parts:
    return footprint.device if side == "device" else footprint.host


def _known(parts: Parts) -> int:
    return parts.total_bytes - parts.runtime


def _dry(parts: Parts, cache: int, compute: int | None) -> Parts:
    """A dry load's figures in place of computed ones."""
    return replace(
        parts,
        kv=parts.kv if abs(cache - parts.kv) <= _ROUNDED_BYTES else cache + _ROUNDED_BYTES,
        compute=parts.compute if compute is None else compute + _ROUNDED_BYTES,
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**50


def _numbers(value: Any) -> list[int]:
    return [n for n in value if _is_size(n)] if isinstance(value, list) else []
