"""The engine without its server: the same load as the bare loop, driven by `Engine.step`, and the Python around it.

Every low-level llama.cpp function is wrapped by a clock before the engine is loaded, so a step's own Python is its
whole time less what passed inside those calls.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import msgspec
import numpy as np

from backends import registry
from backends.engine import Engine
from backends.messages import Failed, Generate, LoadModel, Sampling, Step, TokenPrompt
from bench.bare import Load
from bench.figures import median, percentile


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


def jobs(load: Load) -> list[Generate]:
    """The bare loop's load as jobs."""
    sampling = Sampling(temperature=load.temperature, top_p=load.top_p if load.temperature else 1.0)
    prompts = (np.random.default_rng(i).integers(48, 58, load.n_prompt).tolist() for i in range(load.streams))
    return [
        Generate(id=f"job-{i}", prompt=TokenPrompt(p), sampling=sampling, max_tokens=load.n_generate, ignore_eos=True)
        for i, p in enumerate(prompts)
    ]


def open_engine(path: Path, load: Load) -> Engine:
    """Load the model as a worker would, and collect garbage as one does: not between steps."""
    spec = LoadModel(
        name="bench",
        backend="gguf",
        path=str(path),
        context=load.context,
        parallel=load.streams,
        threads=load.threads,
    )
    engine = registry.engine_of(spec.backend)(spec, lambda _: None)
    gc.collect()
    gc.freeze()
    gc.disable()
    return engine


def _start(engine: Engine, work: list[Generate]) -> None:
    for job in work:
        prepared = engine.prepare(job)
        if isinstance(prepared, list):
            raise RuntimeError(f"the engine answered {prepared} to a generation")
        engine.add(prepared)


def _check(step: Step) -> Step:
    failed = [event for event in step.events if isinstance(event, Failed)]
    if failed:
        raise RuntimeError(f"the engine failed a job: {failed[0].message}")
    return step


def throughput(path: Path, load: Load, *, rounds: int = 1) -> dict[str, float]:
    """Tokens per second of the engine alone, best of `rounds` after one that is not counted."""
    engine = open_engine(path, load)
    best: dict[str, float] = {"tokens_per_s": 0.0}
    for round_index in range(rounds + 1):
        started = time.perf_counter()
        _start(engine, jobs(load))
        steps = []
        while not engine.idle:
            steps.append(_check(engine.step()))
        rate = load.streams * load.n_generate / (time.perf_counter() - started)
        if round_index and rate > best["tokens_per_s"]:
            decoding = [s.duration_us for s in steps if s.n_decode == load.streams and not s.n_prefill]
            best = {"tokens_per_s": rate, "step_us": median(decoding)}
    engine.close()
    return best


def python_per_step(path: Path, load: Load) -> dict[str, float]:
    """Microseconds of Python per step in which every sequence decodes: median and p95; and of encoding its message."""
    clock = LibraryClock()
    clock.install()
    engine = open_engine(path, load)
    wrapper_ns = clock.cost_per_call_ns()
    encoder = msgspec.msgpack.Encoder()
    outside_us: list[float] = []
    encode_us: list[float] = []
    _start(engine, jobs(load))
    while not engine.idle:
        clock.reset()
        started = time.perf_counter_ns()
        step = _check(engine.step())
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
