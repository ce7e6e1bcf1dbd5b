"""The Python around llama.cpp in each step of the engine.

Every low-level llama.cpp function is wrapped by a clock before the engine is loaded, so a step's own Python is its
whole time less what passed inside those calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec

from backends.alone import check, jobs, open_engine, start, vocabulary_size
from backends.workload import Workload
from server.bench.figures import median, percentile


@dataclass
class LibraryClock:
    """Nanoseconds and calls inside llama.cpp since the last `reset`."""

    inside_ns: int = 0
    n_calls: int = 0

    def install(self) -> None:
        """Wrap every function of the library's low-level interface that the engine reaches through the module."""
        for name, function in vars(llama_cpp).copy().items():
            if name.startswith("llama_") and hasattr(function, "argtypes"):
                setattr(llama_cpp, name, self._timed(function))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        clock = time.perf_counter_ns

        def call(*arguments: Any) -> Any:
            started = clock()
            result = function(*arguments)
            self.inside_ns += clock() - started
            self.n_calls += 1
            return result

        return call

    def cost_per_call_ns(self) -> float:
        """What the wrapper itself adds to the time outside the library, to be taken off again."""
        empty = self._timed(lambda *_: None)
        n_calls = 20_000
        self.reset()
        started = time.perf_counter_ns()
        for _ in range(n_calls):
            empty(1, 2, 3)
        whole = time.perf_counter_ns() - started
        outside = (whole - self.inside_ns) / n_calls
        self.reset()
        return outside

    def reset(self) -> None:
        """Start counting again."""
        self.inside_ns = self.n_calls = 0


def python_per_step(path: Path, load: Workload) -> dict[str, float]:
    """Microseconds of Python per step in which every sequence decodes: median and p95; and of encoding its message."""
    clock = LibraryClock()
    clock.install()
    engine = open_engine(path, load)
    wrapper_ns = clock.cost_per_call_ns()
    encoder = msgspec.msgpack.Encoder()
    outside_us: list[float] = []
    encode_us: list[float] = []
    start(engine, jobs(load, vocabulary_size(engine)))
    while not engine.idle:
        clock.reset()
        started = time.perf_counter_ns()
        step = check(engine.step())
        ended = time.perf_counter_ns()
        if step.n_decode == load.streams and not step.n_prefill:
            outside_us.append((ended - started - clock.inside_ns - clock.n_calls * wrapper_ns) / 1e3)
            encoder.encode(step)
            encode_us.append((time.perf_counter_ns() - ended) / 1e3)
    engine.close()
    return {
        "python_us": median(outside_us),
        "python_p95_us": percentile(outside_us, 95),
        "encode_us": median(encode_us),
        "steps": float(len(outside_us)),
    }
