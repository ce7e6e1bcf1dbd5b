"""Many models on one budget, as clients ask for them in turn: loads, waits and errors of two traces.

`alternating`: four models of different size with room for about two, three clients, each going back and forth between
two of them; once as the scheduler does it and once strictly first come, first served. `tiny`: five copies of a tiny
model with room for two, six clients in turn. Real workers and the real engine; the pool runs in this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from backends.machine import host
from backends.messages import Failed, Generate, GeneratorPlan, Sampling, TextPrompt
from backends.registry import BACKENDS, estimate
from demo import GGUF_PATH
from server.bench.figures import median, percentile
from server.metrics import Metrics
from server.pool.limits import rules
from server.pool.pool import Pool
from server.scheduling.swaps import Policy
from server.settings.catalog import Catalog
from server.settings.config import ModelConfig, Settings
from server.settings.sections import MemorySection

PARALLEL: Final = 2
CONTEXTS: Final = {"large": 32768, "middle": 24576, "small": 16384, "least": 8192}
ALTERNATING: Final = (("large", "middle"), ("middle", "small"), ("small", "least"))
TINY: Final = ("m0", "m1", "m2", "m3", "m4")


@dataclass(frozen=True)
class Trace:
    """Models by context, the budget, and what each client asks for, one request after the other."""

    contexts: Mapping[str, int]
    budget_bytes: int
    clients: Sequence[Sequence[str]]
    n_requests: int
    n_tokens: int = 8


@dataclass
class Outcome:
    """What one run gave; times in seconds."""

    n_loads: int = 0
    waits_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0
    most_over_bytes: int = 0
    """By how much reservations were ever above the budget."""
    unreserved: list[float] = field(default_factory=list)
    """After each load, what the workers really held beyond their reservations, as a share; negative where less."""

    def figures(self) -> dict[str, float]:
        """For printing."""
        return {
            "requests": float(len(self.waits_s)),
            "loads": float(self.n_loads),
            "errors": float(len(self.errors)),
            "mean_s": sum(self.waits_s) / max(1, len(self.waits_s)),
            "median_s": median(self.waits_s),
            "p99_s": percentile(self.waits_s, 99),
            "longest_s": max(self.waits_s, default=0.0),
            "most_over_bytes": float(self.most_over_bytes),
            "most_unreserved": max(self.unreserved, default=0.0),
            "seconds": self.seconds,
        }


def alternating(n_requests: int = 200) -> Trace:
    """Four models of different size; the budget holds the largest and the third, and never three of the four."""
    needs = _needs_bytes(CONTEXTS)
    return Trace(CONTEXTS, needs["large"] + needs["small"], ALTERNATING, n_requests)


def tiny(n_requests: int = 180) -> Trace:
    """Five copies of the smallest model; the budget holds two."""
    contexts = dict.fromkeys(TINY, 512)
    clients = [TINY[start % len(TINY) :] + TINY[: start % len(TINY)] for start in range(6)]
    return Trace(contexts, int(2.5 * _needs_bytes(contexts)[TINY[0]]), clients, n_requests)


def run(trace: Trace, policy: Policy = "collate") -> Outcome:
    """Serve the trace once."""
    return asyncio.run(_run(trace, policy))


def measure() -> dict[str, float]:
    """All of it, each figure named for its trace."""
    runs = {"alternating": run(alternating()), "alternating_fifo": run(alternating(), "fifo"), "tiny": run(tiny())}
    return {f"{name}_{key}": value for name, outcome in runs.items() for key, value in outcome.figures().items()}


def _needs_bytes(contexts: Mapping[str, int]) -> dict[str, int]:
    header = BACKENDS["gguf"].describe(Path(GGUF_PATH), {})
    return {
        name: estimate(header, GeneratorPlan(context, PARALLEL, gpu_layers=0)).amount.host
        for name, context in contexts.items()
    }


async def _run(trace: Trace, policy: Policy) -> Outcome:
    pool, catalog = _pool(trace, policy)
    outcome = Outcome()
    pool.on_change.append(lambda what, _: _count(pool, outcome, what))
    await pool.start()
    await asyncio.sleep(1.0)  # the template process and the estimates are there
    left = iter(range(trace.n_requests))
    began = time.monotonic()
    try:
        await asyncio.gather(*(_client(pool, catalog, cycle(models), left, trace, outcome) for models in trace.clients))
        outcome.seconds = time.monotonic() - began
    finally:
        await pool.close(0)
    return outcome


def _pool(trace: Trace, policy: Policy) -> tuple[Pool, Catalog]:
    models = {
        name: ModelConfig(path=str(GGUF_PATH), context=context, parallel=PARALLEL, kv_type="f16")
        for name, context in trace.contexts.items()
    }
    settings = Settings(memory=MemorySection(device="cpu", budget=trace.budget_bytes), models=models)
    catalog, limits = Catalog(settings), rules(settings)
    limits = replace(limits, swaps=replace(limits.swaps, policy=policy))
    return Pool(settings, catalog, Metrics(models), rules=limits), catalog


def _count(pool: Pool, outcome: Outcome, what: str) -> None:
    outcome.n_loads += what == "loading"
    status = pool.status()
    outcome.most_over_bytes = max(outcome.most_over_bytes, status.memory.reserved_bytes - status.memory.budget_bytes)
    measured = [model for model in status.models if model.measured_bytes is not None and model.pid is not None]
    if what == "loaded" and measured:
        held = sum(host.anonymous_bytes(model.pid or 0) + model.parts.get("weights", 0) for model in measured)
        outcome.unreserved.append(held / sum(model.measured_bytes or 0 for model in measured) - 1)


async def _client(
    pool: Pool, catalog: Catalog, models: Iterator[str], left: Iterator[int], trace: Trace, outcome: Outcome
) -> None:
    for number in left:
        (name,) = islice(models, 1)
        entry = catalog.resolve(name)
        assert entry is not None
        sampling = Sampling(temperature=0.0)
        job = Generate(
            f"job{number}", TextPrompt("Once"), sampling=sampling, max_tokens=trace.n_tokens, ignore_eos=True
        )
        began = time.monotonic()
        async for event in pool.submit(entry, job):
            if isinstance(event, Failed):
                outcome.errors.append(event.message)
        outcome.waits_s.append(time.monotonic() - began)
