"""Engines on CANARY-KV, and what each prompt's continuation is when no other is there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends import registry
from backends.engine import Engine
from backends.messages import (
    DraftFiles,
    Generate,
    KvLayout,
    KvType,
    Sampling,
    SpeculationMode,
    Store,
    TokenLogprob,
    TokenPrompt,
)
from tests.gguf.driver import Outcome, run
from tests.specs import spec_of

_NUMBERS = itertools.count()
GREEDY = Sampling(temperature=0)
TIE = 0.5
"""In a shared pool the order of a sequence's cells depends on the others. Sixteen prompts at once against each alone,
with `EXACT_CELLS`: the lead of the best token over the second differs by 0.00003 in the middle, and by 0.36 at most in
490 000 tokens with nothing kept, by 0.30 in 570 000 with everything. (In f16 by 2.05: attention has ways to round.)
"""
TOP = 8
_MOST_KNOWN = 2000


def open_engine(
    model: Path,
    *,
    layout: KvLayout = "split",
    kv_type: KvType = "f16",
    kv_tokens: int = 0,
    parallel: int = 4,
    store: Path | None = None,
    store_bytes: int = 32 << 20,
    disk: Path | None = None,
    disk_bytes: int = 0,
    max_itl_ms: float = 0.0,
    speculation: SpeculationMode = "off",
    draft: Path | None = None,
    backend: str = "gguf",
    mtp: bool = False,
) -> Engine:
    spec = spec_of(
        name="canary",
        backend=backend,
        path=str(model),
        context=512,
        parallel=parallel,
        threads=1,
        kv_layout=layout,
        kv_type=kv_type,
        kv_tokens=kv_tokens,
        max_itl_ms=max_itl_ms,
        speculation=speculation,
        draft=None if draft is None else DraftFiles("draft", str(draft)),
        store=Store(str(store), store_bytes, str(disk or ""), disk_bytes) if store is not None else None,
        mtp=mtp,
    )
    return registry.engine_of(backend)(spec, lambda _: None)


def job(tokens: Sequence[int], n_tokens: int = 24, **fields: object) -> Generate:
    return Generate(
        id=f"job-{next(_NUMBERS)}",
        prompt=TokenPrompt(list(tokens)),
        max_tokens=n_tokens,
        ignore_eos=True,
        sampling=GREEDY,
        **fields,  # type: ignore[arg-type]
    )


def generated(outcome: Outcome) -> list[bytes]:
    """The tokens of an answer asked for with `logprobs=0`."""
    return [entry.bytes for entry in outcome.logprobs()]


@dataclass
class Gold:
    """The uncontended greedy continuation of any prompt, from an engine that keeps nothing."""

    engine: Engine
    exact: bool = False
    """Answers are to be the golden ones to the last bit: both engines have `EXACT_CELLS`, each sequence its own."""
    _known: dict[tuple[int, ...], list[TokenLogprob]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Gold"

    def of(self, tokens: Sequence[int], n_tokens: int = 24) -> list[bytes]:
        return [entry.bytes for entry in self._entries(tokens, n_tokens)]

    def check(self, outcome: Outcome, tokens: Sequence[int], n_tokens: int = 24, *, index: int = 0) -> bool:
        """A choice is the golden one as far as it goes; whether it parted from it at a numerical tie.

        In a shared pool answers may part where the best tokens lie within `TIE`. Of most the best is ahead by more than
        ten, and what a wrong state says is not near.
        """
        told, gold = outcome.logprobs(index), self._entries(tokens, n_tokens)
        assert len(told) <= n_tokens
        for at, (ours, best) in enumerate(zip(told, gold, strict=False)):
            if self.exact:
                assert (ours.bytes, ours.logprob) == (best.bytes, best.logprob), _case(at, ours, best, outcome, tokens)
            elif ours.bytes != best.bytes:
                # behind what was chosen alone: an end may be ahead of both, and is forbidden here
                behind = {entry.bytes: _sure(best) - _sure(entry) for entry in best.top}
                assert behind.get(ours.bytes, math.inf) < TIE, _case(at, ours, best, outcome, tokens)
                return True
        return False

    def _entries(self, tokens: Sequence[int], n_tokens: int) -> list[TokenLogprob]:
        known = self._known.get(tuple(tokens), [])
        if len(known) < n_tokens:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            (outcome,) = run(self.engine, [job(tokens, n_tokens, logprobs=TOP, cache_prompt=False)])
            known = self._known[tuple(tokens)] = outcome.logprobs()
        return known[:n_tokens]


def _case(at: int, ours: TokenLogprob, best: TokenLogprob, outcome: Outcome, tokens: Sequence[int]) -> str:
    """Everything that is needed to ask again."""
    alone = ", ".join(f"{entry.bytes!r} {entry.logprob:.3f}" for entry in best.top)
    cached = outcome.started.cached_tokens
    preempted = getattr(outcome.end, "preemptions", "unknown")
    return (
        f"token {at} is {ours.bytes!r} at {ours.logprob}, alone {best.bytes!r} at {best.logprob} of {alone}; "
        f"{cached} of {len(tokens)} tokens were there, preempted: {preempted}; {list(tokens)}"
    )


def _sure(entry: TokenLogprob) -> float:
    assert entry.logprob is not None, "no token of an answer is without"
    return entry.logprob
