"""What a server's tokens per second are held against: the bare `llama_decode` loop, or the engine alone.

Both run in a child process, because no inference library comes into this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backends.border.child import environment
from backends.machine.crash_reason import essence
from backends.registry import BACKENDS
from backends.workload import MeasureQuestion, Workload


@dataclass(frozen=True)
class Loop:
    """A program that does a workload without a server."""

    name: str
    module: str
    ours: bool = True
    """Whether it runs as our workers do, or as the library would by itself."""

    def environment(self) -> dict[str, str]:
        """What it gets to see."""
        return environment(os.environ) if self.ours else environment(os.environ, spins=None)


ALONE = Loop("engine alone", "backends.alone")


def loop_of(backend: str) -> Loop:
    """The barest program that this backend has."""
    module = BACKENDS[backend].baseline
    return Loop("bare loop", module, ours=False) if module is not None else ALONE


@dataclass(frozen=True)
class Baseline:
    """Tokens per second by number of streams, and what they were measured with."""

    name: str
    tokens_per_s: dict[int, float] = field(default_factory=dict)
    missing: str | None = None
    """Why there are none, where there are none."""


def measure(
    loop: Loop,
    path: Path,
    backend: str,
    work: Workload,
    *,
    streams: Sequence[int],
    rounds: int,
    timeout_s: float = 3600,
) -> Baseline:
    """The best of the rounds for each number of streams; from one that fails on, they are missing."""
    question = MeasureQuestion(str(path), backend, work, list(streams), rounds)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", loop.module],
            input=msgspec.json.encode(question).decode() + "\n",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=loop.environment(),
        )
    except subprocess.TimeoutExpired:
        return Baseline(loop.name, missing=f"it took more than {timeout_s:.0f} s")
    rates: dict[int, float] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        rates[line["streams"]] = max(line["tokens_per_s"], rates.get(line["streams"], 0.0))
    if done.returncode == 0:
        return Baseline(loop.name, rates)
    return Baseline(loop.name, rates, essence(done.stderr.splitlines()) or f"it ended with status {done.returncode}")
