"""Hugging Face folders: the engine over transformers and bitsandbytes at 1 and 8 streams, against transformers' own.

Each measurement is a process of its own. transformers' side is its `ContinuousBatchingManager`, which is what
`transformers serve --continuous-batching` runs behind its HTTP server.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import folder
from bench.model import Shape
from server.bench.figures import median, percentile

QUANTIZATIONS = ("none", "bnb-4bit", "bnb-8bit")
REPEATS = {1: 3, 8: 2}
"""Measurements by number of streams, in each process; one of `N_WARM` tokens comes before them."""
N_PROMPT = 32
N_GENERATE = 96
N_WARM = 8
N_LOADS = 2
LARGE = Shape(n_layers=16, n_embd=1536, n_ff=4096)
"""About 415 M parameters: their bytes are most of a load, as in a model that is used."""


def measure(rounds: int) -> dict[str, float]:
    """All figures; ratios are of medians of runs that took turns."""
    figures: dict[str, float] = {}
    for quantization in QUANTIZATIONS:
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(_child("ours", quantization))
            theirs.append(_child("theirs", quantization))
        for streams in REPEATS:
            name = f"{quantization}, {streams} streams"
            for key, unit in (("tokens_per_s", "tokens/s"), ("first_p99_ms", "first token p99 ms")):
                mine = median([run[f"{key} {streams}"] for run in ours])
                its = median([run[f"{key} {streams}"] for run in theirs])
                figures |= {
                    f"{name}: {unit}": mine,
                    f"{name}: transformers {unit}": its,
                    f"{name}: {unit} /": mine / its,
                }
        figures[f"{quantization}: 8 streams / 1"] = median([r["tokens_per_s 8"] / r["tokens_per_s 1"] for r in ours])
        figures[f"{quantization}: Python of a step, 8"] = median([r["python_share 8"] for r in ours])
        figures[f"{quantization}: same texts alone"] = min(r["same_texts"] for r in ours)
    return figures | _loads()


def _child(what: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.bnb", what, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} {arguments} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _prompts(streams: int, seed: int) -> list[list[int]]:
    return [np.random.default_rng(seed * 100 + i).integers(48, 58, N_PROMPT).tolist() for i in range(streams)]


def ours(quantization: str) -> dict[str, float]:
    """Our engine in this process."""
    from backends import registry
    from backends.messages import Delta, Generate, GeneratorPlan, LoadModel, Sampling, TokenPrompt

    spec = LoadModel("bench", "bnb", str(folder.path()), GeneratorPlan(1024, 8), options={"quantization": quantization})
    engine: Any = registry.engine_of("bnb")(spec, lambda _: None)
    inside = _Clock(engine._context._runner)  # noqa: SLF001
    taken = _Taken()
    for streams, n_generate in _runs():
        greedy = Sampling(temperature=0.0)
        began = time.perf_counter()
        for i, prompt in enumerate(_prompts(streams, 1)):
            engine.add(
                engine.prepare(Generate(f"j{i}", TokenPrompt(prompt), greedy, max_tokens=n_generate, ignore_eos=True))
            )
        first: dict[str, float] = {}
        texts: dict[str, str] = {}
        while not engine.idle:
            inside.seconds = 0.0
            started = time.perf_counter()
            step = engine.step()
            now = time.perf_counter()
            for event in step.events:
                if isinstance(event, Delta):
                    first.setdefault(event.id, now - began)
                    texts[event.id] = texts.get(event.id, "") + event.text
            if step.n_decode == streams and not step.n_prefill:
                taken.python.setdefault(streams, []).append(1 - inside.seconds / (now - started))
        taken.add(streams, n_generate, time.perf_counter() - began, first)
        taken.text[streams] = texts["j0"]
    shares = {f"python_share {streams}": median(shares) for streams, shares in taken.python.items()}
    return taken.figures() | shares | {"same_texts": float(len(set(taken.text.values())) == 1)}


def _runs() -> list[tuple[int, int]]:
    """`(streams, tokens of each)` of every run of a process, the short ones for warming up first."""
    warm = [(streams, N_WARM) for streams in REPEATS]
    return warm + [(streams, N_GENERATE) for streams, n in REPEATS.items() for _ in range(n)]


@dataclass
class _Taken:
    """What the runs of one process took; those for warming up don't count."""

    rates: dict[int, list[float]] = field(default_factory=dict)
    first_s: dict[int, list[float]] = field(default_factory=dict)
    python: dict[int, list[float]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    """Of the first prompt, by the number of streams."""

    def add(self, streams: int, n_generate: int, seconds: float, first_s: Mapping[str, float]) -> None:
        """A run of so many tokens each, and when their first ones came."""
        if n_generate == N_GENERATE:
            self.rates.setdefault(streams, []).append(streams * n_generate / seconds)
            self.first_s.setdefault(streams, []).extend(first_s.values())

    def figures(self) -> dict[str, float]:
        """Medians of the rates, and the first tokens' p99 over all runs."""
        rates = {f"tokens_per_s {streams}": median(found) for streams, found in self.rates.items()}
        return rates | {f"first_p99_ms {n}": percentile(found, 99) * 1e3 for n, found in self.first_s.items()}


class _Clock:
    """Seconds inside the model's forward passes."""

    def __init__(self, runner: Any) -> None:
        self.seconds = 0.0
        self._forward = runner.forward
        runner.forward = self

    def __call__(self, *arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return self._forward(*arguments)
        finally:
            self.seconds += time.perf_counter() - began


def theirs(quantization: str) -> dict[str, float]:
    """transformers' continuous batching in this process."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    wanted = {
        "bnb-4bit": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "bnb-8bit": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
    }.get(quantization)
    more: dict[str, Any] = {} if wanted is None else {"quantization_config": wanted, "device_map": "cpu"}
    model = AutoModelForCausalLM.from_pretrained(
        folder.path(), dtype=torch.bfloat16, attn_implementation="sdpa", **more
    )
    config = GenerationConfig(max_new_tokens=N_GENERATE, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512)
    taken = _Taken()
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
    manager.start()
    for streams, n_generate in _runs():
        began = time.perf_counter()
        for i, prompt in enumerate(_prompts(streams, 1)):
            manager.add_request(prompt, request_id=f"{streams}-{i}-{began}", max_new_tokens=n_generate, streaming=True)
        first: dict[str, float] = {}
        done: set[str] = set()
        while len(done) < streams:
            found = manager.get_result(timeout=60)
            if found is None:
                raise RuntimeError("no answer within 60 s")
            first.setdefault(found.request_id, time.perf_counter() - began)
            if found.is_finished():
                done.add(found.request_id)
        taken.add(streams, n_generate, time.perf_counter() - began, first)
    manager.stop(block=True)
    return taken.figures()


def _loads() -> dict[str, float]:
    """Seconds of a load that quantises, and of one that finds the weights stored quantised."""
    figures: dict[str, float] = {}
    for size, source in (("", folder.path()), ("large, ", folder.path(LARGE))):
        for quantization in QUANTIZATIONS[1:]:
            with tempfile.TemporaryDirectory() as made:
                _child("store", quantization, str(source), made)
                on_load = median([_child("load", quantization, str(source))["load_s"] for _ in range(N_LOADS)])
                ready = median([_child("load", "none", f"{made}/{quantization}")["load_s"] for _ in range(N_LOADS)])
            name = f"{size}{quantization}: load,"
            figures |= {f"{name} quantising s": on_load, f"{name} stored s": ready}
            figures[f"{name} quantising / stored"] = on_load / ready
    return figures


def load(quantization: str, path: str) -> dict[str, float]:
    """Seconds of one load, imports excluded."""
    from backends import registry
    from backends.messages import GeneratorPlan, LoadModel

    spec = LoadModel("bench", "bnb", path, GeneratorPlan(1024, 1), options={"quantization": quantization})
    opening = registry.engine_of("bnb")
    began = time.perf_counter()
    opening(spec, lambda _: None)
    return {"load_s": time.perf_counter() - began}


def store(quantization: str, path: str, made: str) -> dict[str, float]:
    """Write a folder quantised, as `onecard quantize` does."""
    from quantize.bnb import quantize
    from quantize.hf.source import opened

    with opened(Path(path)) as source:
        quantize(source, Path(made) / quantization, quantization)
    return {}


def main() -> None:
    """One measurement, as a JSON line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["ours", "theirs", "load", "store"])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    answer: dict[str, float] = globals()[options.what](*options.arguments)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
