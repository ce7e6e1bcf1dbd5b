"""Engines on CANARY-KV, and what each prompt's continuation is when nobody else is there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.engine import Engine
from backends.gguf.loading import load
from backends.messages import Generate, KvLayout, LoadModel, Sampling, Store, TokenLogprob, TokenPrompt
from tests.gguf.driver import Outcome, run

_NUMBERS = itertools.count()
GREEDY = Sampling(temperature=0)
TIE = 1.0
"""Sixteen prompts at once, with nothing kept, against each alone: the lead of the best token over the second differs by
0.01 in the middle, 0.6 once in ten thousand tokens and 0.91 at most in 57 000."""
_MOST_KNOWN = 2000


def open_engine(
    model: Path,
    *,
    layout: KvLayout = "split",
    kv_tokens: int = 0,
    parallel: int = 4,
    store: Path | None = None,
    store_bytes: int = 32 << 20,
    disk: Path | None = None,
    disk_bytes: int = 0,
    max_gap_ms: float = 0.0,
) -> Engine:
    spec = LoadModel(
        name="canary",
        backend="gguf",
        path=str(model),
        context=512,
        parallel=parallel,
        threads=1,
        kv_layout=layout,
        kv_tokens=kv_tokens,
        max_gap_ms=max_gap_ms,
        store=Store(str(store), store_bytes, str(disk or ""), disk_bytes) if store is not None else None,
    )
    return load(spec, lambda _: None)


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
    _known: dict[tuple[int, ...], list[TokenLogprob]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Gold"

    def of(self, tokens: Sequence[int], n_tokens: int = 24) -> list[bytes]:
        return [entry.bytes for entry in self._entries(tokens, n_tokens)]

    def check(self, outcome: Outcome, tokens: Sequence[int], n_tokens: int = 24) -> bool:
        """The answer is the golden one as far as it goes, up to a numerical tie; whether there was one.

        Attention rounds to 16 bits, and how depends on the cells beside: answers may part where the best tokens lie
        within `TIE`. That is four tokens in a hundred; of most the best is ahead by more than ten, and what a wrong
        state says is not near.
        """
        told, gold = generated(outcome), self._entries(tokens, n_tokens)
        assert len(told) <= n_tokens
        for at, (ours, best) in enumerate(zip(told, gold, strict=False)):
            if ours != best.bytes:
                behind = {entry.bytes: best.top[0].logprob - entry.logprob for entry in best.top}
                short = behind.get(ours, float("inf"))
                assert short < TIE, f"token {at} is another, {short:.2f} behind the best"
                return True
        return False

    def _entries(self, tokens: Sequence[int], n_tokens: int) -> list[TokenLogprob]:
        known = self._known.get(tuple(tokens), [])
        if len(known) < n_tokens:
            if len(self._known) > _MOST_KNOWN:
                self._known.clear()
            (outcome,) = run(self.engine, [job(tokens, n_tokens, logprobs=3, cache_prompt=False)])
            known = self._known[tuple(tokens)] = outcome.logprobs()
        return known[:n_tokens]
