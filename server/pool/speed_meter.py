"""What the steps of one loaded model take, against what was predicted of its plan. Pure: time is an argument.

A step is counted where one request runs alone, and nothing was drafted for it. The seconds of decoding are those
between two reports, so what a worker does between two steps counts; those of a prompt are its steps' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import msgspec

from backends.messages import ENDS, Started
from server.memory.speeds import SpeedEstimate, SpeedSource, rounded

if TYPE_CHECKING:
    from backends.messages import Step
    from backends.speed import Speed

Phase = Literal["decode", "prefill"]
DECODE_TOKENS: Final = 48
"""Of a window whose tokens per second are one figure."""
PREFILL_TOKENS: Final = 256
_LEAST_BATCH: Final = 32
"""Tokens of a prompt that tell something; what fewer take is the pass, not the tokens."""


class LoadedSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """Of a loaded model: what one request alone was predicted to get when it was loaded, and gets."""

    decode_tokens_per_s: float
    """With 512 tokens before it, or a full context where that is shorter."""
    full_decode_tokens_per_s: float
    """At the end of the context."""
    prefill_tokens_per_s: float
    source: SpeedSource
    measured_decode_tokens_per_s: float | None = None
    """The same conversation by what steps took lately; None until one request has run alone for a while."""
    measured_prefill_tokens_per_s: float | None = None
    decode_error: float | None = None
    """Measured / predicted - 1."""
    prefill_error: float | None = None


class SpeedMeter:
    """Of one load. `computed` is what ratios are of, `predicted` what was told."""

    def __init__(self, computed: Speed, predicted: SpeedEstimate) -> None:
        self._computed = computed
        self._predicted = predicted
        self._windows: dict[Phase, _Window] = {"decode": _Window(DECODE_TOKENS), "prefill": _Window(PREFILL_TOKENS)}
        self._ratios: dict[Phase, float] = {}
        self._jobs: set[str] = set()
        self._n_before = 0
        self._alone_since: float | None = None
        """The last report of decoding, where the same request has run alone since."""

    def on_step(self, step: Step, now: float) -> list[tuple[Phase, float]]:
        """Take a report in; of the windows that are full with it, how many times the computed seconds each took."""
        full = []
        for event in step.events:
            if isinstance(event, Started):
                self._begin(event)
        if len(self._jobs) == 1 and not step.n_inputs:
            full = self._count(step, now)
        else:
            self._alone_since = None
        for event in step.events:
            if isinstance(event, ENDS):
                self._jobs.discard(event.id)
                self._alone_since = None
        return full

    def _begin(self, event: Started) -> None:
        self._jobs.add(event.id)
        self._n_before = event.cached_tokens
        self._alone_since = None

    def _count(self, step: Step, now: float) -> list[tuple[Phase, float]]:
        n_steps = len(step.batches) or 1
        since, self._alone_since = self._alone_since, now
        told = None
        if step.n_prefill:
            self._alone_since = now if step.n_decode else None
            if step.n_prefill >= _LEAST_BATCH and n_steps == 1 and step.n_decode <= 1:
                told = self._prefilled(step.n_prefill, step.duration_us / 1e6)
        elif not step.drafted and step.n_decode == n_steps and max(step.batches, default=1) == 1 and since is not None:
            told = self._decoded(step.n_decode, now - since)
        self._n_before += step.n_prefill + step.n_tokens
        return [told] if told is not None else []

    def _decoded(self, n_tokens: int, seconds: float) -> tuple[Phase, float] | None:
        speed = self._computed
        return self._add("decode", n_tokens, seconds, n_tokens * (speed.token_s + speed.cell_s * self._n_before))

    def _prefilled(self, n_tokens: int, seconds: float) -> tuple[Phase, float] | None:
        speed = self._computed
        each_s = speed.prompt_s + speed.prompt_cell_s * (self._n_before + n_tokens / 2)
        return self._add("prefill", n_tokens, seconds, n_tokens * each_s)

    def _add(self, phase: Phase, n_tokens: int, seconds: float, expected_s: float) -> tuple[Phase, float] | None:
        ratio = self._windows[phase].add(n_tokens, seconds, expected_s)
        if ratio is None:
            return None
        self._ratios[phase] = ratio
        return phase, ratio

    @property
    def status(self) -> LoadedSpeed:
        """As of the last full windows."""
        told = self._predicted.status
        decode, prefill = (self._measured(phase) for phase in ("decode", "prefill"))
        return LoadedSpeed(
            decode_tokens_per_s=told.decode_tokens_per_s,
            full_decode_tokens_per_s=told.full_decode_tokens_per_s,
            prefill_tokens_per_s=told.prefill_tokens_per_s,
            source=told.source,
            measured_decode_tokens_per_s=decode,
            measured_prefill_tokens_per_s=prefill,
            decode_error=_error(decode, told.decode_tokens_per_s),
            prefill_error=_error(prefill, told.prefill_tokens_per_s),
        )

    def _measured(self, phase: Phase) -> float | None:
        ratio = self._ratios.get(phase)
        if ratio is None:
            return None
        speed = self._computed
        return rounded((speed.decode_per_s() if phase == "decode" else speed.prefill_per_s()) / ratio)


class _Window:
    def __init__(self, n_tokens: int) -> None:
        self._full = n_tokens
        self._n_tokens = 0
        self._seconds = self._expected_s = 0.0

    def add(self, n_tokens: int, seconds: float, expected_s: float) -> float | None:
        """Measured / expected of a window that is full; it begins anew."""
        self._n_tokens += n_tokens
        self._seconds += seconds
        self._expected_s += expected_s
        if self._n_tokens < self._full:
            return None
        ratio = self._seconds / self._expected_s
        self._n_tokens, self._seconds, self._expected_s = 0, 0.0, 0.0
        return ratio


def _error(measured: float | None, predicted: float) -> float | None:
    return None if measured is None else round(measured / predicted - 1, 4)
