"""The whole comparison: every figure with its target, the two sides of a ratio taken alternately in one run.

Owns the order of the measurements and the table. Each side runs in a process of its own, one at a time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

from backends.border.child import environment
from backends.workload import Workload
from bench import mix, model, serving
from bench.report import Figure, at_least, below
from server.bench.figures import median
from server.bench.load import chat, run, summary

STREAMS = (1, 8)
SEQUENCES = (1, 32)
N_COLD = 3


def child(*arguments: str, env: dict[str, str] | None = None) -> dict[str, float]:
    """Run one measurement as `python -m bench ... --json` and read its line. Raises RuntimeError with its error."""
    command = [sys.executable, "-m", "bench", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(load: Workload, *, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Everything, in the order of the report."""
    config = serving.config_text(model.path(), context=load.context, parallel=max(STREAMS))
    with serving.running(config) as server:
        whole_prompt = _warm(server.url, load)
        figures = _ratios(server, load, whole_prompt, rounds=rounds, say=say)
        say("long prompts beside running streams")
        beside = mix.measure(server.url)
    figures += _python(load, say)
    figures += _light(say)
    figures += [Figure(f"mix: {name}", value, "ms") for name, value in beside.items() if name.endswith("_ms")]
    return figures


def _warm(url: str, load: Workload) -> int:
    """Load the model and touch every path once; the tokens of a prompt with what the chat template writes around it."""
    requests = [chat(serving.MODEL_NAME, model.digits(load.n_prompt, 90 + i), 8) for i in range(max(STREAMS))]
    answers = run(url, requests)
    summary(answers)
    return answers[0].prompt_tokens


def _ratios(
    server: serving.Server, load: Workload, whole_prompt: int, *, rounds: int, say: Callable[[str], None]
) -> list[Figure]:
    """`whole_prompt` tokens are what the other sides compute, so that all do the same work."""
    figures = []
    for streams in STREAMS:
        sides: dict[str, list[dict[str, float]]] = {"bare": [], "server": [], "engine": []}
        for index in range(rounds):
            for name, taken in _round(server, load, whole_prompt, streams).items():
                sides[name].append(taken)
            rates = {name: f"{runs[-1]['tokens_per_s']:.1f}" for name, runs in sides.items()}
            say(f"{streams} streams, round {index + 1}/{rounds}, tokens/s: {rates}")
        figures += _of_sides(sides, f"{streams} streams" if streams > 1 else "1 stream")
    return figures


def _round(server: serving.Server, load: Workload, whole_prompt: int, streams: int) -> dict[str, dict[str, float]]:
    """One measurement of each side."""
    flags = ["--streams", str(streams), "--generate", str(load.n_generate), "--temperature", str(load.temperature)]
    bare = child("bare", *flags, "--prompt", str(whole_prompt))
    cpu_s = server.cpu_seconds()
    served = child("load", server.url, *flags, "--prompt", str(load.n_prompt))
    served["cpu_us"] = (server.cpu_seconds() - cpu_s) / served["completion_tokens"] * 1e6
    alone = child("engine", *flags, "--prompt", str(whole_prompt), env=environment(os.environ))
    return {"bare": bare, "server": served, "engine": alone}


def _of_sides(sides: dict[str, list[dict[str, float]]], name: str) -> list[Figure]:
    """Ratios first, then what they were made of."""
    rates = {side: [taken["tokens_per_s"] for taken in runs] for side, runs in sides.items()}
    ratios = {side: [a / b for a, b in zip(taken, rates["bare"], strict=True)] for side, taken in rates.items()}
    figures = [
        at_least(f"server / bare loop, {name}", ratios["server"], 0.90),
        Figure(f"engine / bare loop, {name}", median(ratios["engine"]), "", runs=ratios["engine"]),
    ]
    figures += [Figure(f"{side}, {name}", median(taken), "tokens/s", runs=taken) for side, taken in rates.items()]
    for key, what, unit in (
        ("ttft_p50_ms", "time to first token, p50", "ms"),
        ("itl_p99_ms", "inter-token latency, p99", "ms"),
        ("cpu_us", "processor time of the server process", "us/token"),
    ):
        values = [taken[key] for taken in sides["server"]]
        figures.append(Figure(f"server, {name}: {what}", median(values), unit, runs=values))
    return figures


def _python(load: Workload, say: Callable[[str], None]) -> list[Figure]:
    """The engine's own Python per step, by number of sequences."""
    figures = []
    for sequences, bound_us in zip(SEQUENCES, (150, 600), strict=True):
        say(f"Python per step, {sequences} sequences")
        taken = child("python", "--streams", str(sequences), "--generate", "128", "--prompt", str(load.n_prompt))
        figures.append(below(f"engine Python per step, {sequences} sequences", taken["python_us"], "us", bound_us))
        figures.append(Figure(f"message encoding per step, {sequences} sequences", taken["encode_us"], "us"))
    return figures


def _light(say: Callable[[str], None]) -> list[Figure]:
    """What the server weighs without a model, and how fast the demo model answers from nothing."""
    say("the server alone, and the demo model from cold")
    first: list[float] = []
    resident = 0
    for _ in range(N_COLD):
        with serving.running() as server:
            resident = max(resident, server.resident_bytes())
            answers = run(server.url, [chat("demo", "What is the capital of France?", 16)])
            summary(answers)
            first.append(answers[0].ttft_s)
    return [
        below("server resident without a model", resident / 1e6, "MB", 120),
        below("import server.app", serving.import_seconds(), "s", 1.5),
        Figure("demo: request to first token, cold worker", median(first), "s", "< 2", median(first) < 2, first),
    ]
