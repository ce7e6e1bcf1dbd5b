"""Drafted tokens against none: the same tasks on two engines of one file, which take turns.

Each figure is the median over the rounds of a ratio within a round, so that what else the machine does falls on both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.alone import check
from backends.engine import AnyEngine
from backends.gguf.loading import load
from backends.gguf.threads import sensible_threads
from backends.messages import (
    Delta,
    DraftFiles,
    Event,
    Generate,
    GeneratorPlan,
    LoadModel,
    Sampling,
    SpeculationMode,
    TextPrompt,
)
from bench.speculation_tasks import TASKS

_CONTEXT = 2048


@dataclass
class Turn:
    """One run of a task on one engine."""

    seconds: float = 0.0
    """From the first token of all streams on."""
    n_tokens: int = 0
    n_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Of all streams together."""
        return self.n_tokens / self.seconds


def measure(
    path: Path,
    *,
    draft: Path | None = None,
    mtp: bool = False,
    modes: Iterable[SpeculationMode] = ("auto", "ngram"),
    streams: Iterable[int] = (1, 2, 4, 8),
    rounds: int = 3,
    n_generate: int = 120,
    threads: int = 0,
    say: Callable[[str], None],
) -> dict[str, str]:
    """By task, mode and streams: the ratio to no drafts, the share of drafted tokens that came true, tokens a step."""
    streams, found = list(streams), {}
    plain = _open(path, "off", max(streams), threads)
    for mode in modes:
        drafting = _open(path, mode, max(streams), threads, draft, mtp=mtp)
        for task in TASKS:
            for n in streams:
                name = f"{task} {mode} {n}"
                found[name] = _compared(plain, drafting, TASKS[task][:n], rounds, n_generate)
                say(f"{name}: {found[name]}")
        drafting.close()
    plain.close()
    return found


def _compared(plain: AnyEngine, drafting: AnyEngine, prompts: tuple[str, ...], rounds: int, n_generate: int) -> str:
    pairs = []
    for number in range(rounds):
        sides = (plain, drafting) if number % 2 == 0 else (drafting, plain)
        turns = {id(engine): _run(engine, prompts, n_generate) for engine in sides}
        pairs.append((turns[id(plain)], turns[id(drafting)]))
    ratio = statistics.median(b.tokens_per_s / a.tokens_per_s for a, b in pairs)
    last = pairs[-1][1]
    same = sum(a.texts == b.texts for a, b in pairs)
    share = f"{last.accepted / last.drafted:.0%} of {last.drafted}" if last.drafted else "none drafted"
    each = last.n_tokens / max(1, last.n_steps) / len(prompts)
    return f"{ratio:.2f}x, {share}, {each:.2f} tokens/step, {same} of {rounds} rounds with equal texts"


def _run(engine: AnyEngine, prompts: tuple[str, ...], n_generate: int) -> Turn:
    """All prompts at once, each computed anew."""
    turn, began = Turn(), 0.0
    for number, prompt in enumerate(prompts):
        job = Generate(
            id=f"{time.monotonic_ns()}-{number}",
            prompt=TextPrompt(prompt),
            max_tokens=n_generate,
            sampling=Sampling(temperature=0),
            cache_prompt=False,
        )
        turn.texts[job.id.rpartition("-")[2]] = ""
        _take(turn, engine.add(engine.prepare(job)))
    while not engine.idle:
        step = check(engine.step())
        _take(turn, step.events)
        if step.n_prefill:
            began, turn.n_tokens, turn.n_steps, turn.drafted, turn.accepted = time.perf_counter(), 0, 0, 0, 0
        elif step.n_decode:
            turn.n_tokens += step.n_tokens
            turn.n_steps += 1
            turn.drafted += sum(n for n, _ in step.drafted.values())
            turn.accepted += sum(n for _, n in step.drafted.values())
            turn.seconds = time.perf_counter() - began
    return turn


def _take(turn: Turn, events: list[Event]) -> None:
    for event in events:
        if isinstance(event, Delta):
            turn.texts[event.id.rpartition("-")[2]] += event.text


def _open(
    path: Path, mode: SpeculationMode, parallel: int, threads: int, draft: Path | None = None, *, mtp: bool = False
) -> Any:
    n_threads = threads or sensible_threads(path.stat().st_size)
    plan = GeneratorPlan(_CONTEXT, parallel)
    files = None if draft is None else DraftFiles(draft.stem, str(draft))
    asked = LoadModel(path.stem, "gguf", str(path), plan, threads=n_threads, speculation=mode, draft=files, mtp=mtp)
    return load(asked, lambda _: None)
