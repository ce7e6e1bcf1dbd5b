"""What a card does: two random models of real size under one budget, served, swapped, and held against the bare loop.

`bench/gpu.sh` runs it; `--tiny` is the same on the CPU with small shapes. Results go to `gpu.json`, a table comes last.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from backends.workload import Workload
from bench import random_q4, report
from bench.serving import running
from server.bench import baseline
from server.bench.figures import median
from server.bench.load import completion, run
from server.bench.measure import TEXT, Prompts, Target, measure
from server.bench.report import with_baseline

LONG_PROMPT = 1536
N_SWAPS = 4


@dataclass(frozen=True)
class GpuPlan:
    """What is measured, and on what."""

    shapes: tuple[str, ...] = ("3b", "8b")
    streams: tuple[int, ...] = (1, 4, 8, 16)
    device: str = "cuda"
    budget: str = "12GiB"
    n_prompt: int = 64
    n_generate: int = 128
    context: int = 2048
    rounds: int = 2


TINY = GpuPlan(("tiny", "small"), (1, 2), "cpu", "72MiB", 16, 16, 2048, 1)
_SMALL = replace(random_q4.SHAPES["tiny"], n_layers=2)


@dataclass
class Clock:
    """Leaves out what there is no time for, and says so."""

    deadline: float
    skipped: list[str]

    def allows(self, what: str, needs_s: float) -> bool:
        """Whether so many seconds are left."""
        if time.monotonic() + needs_s <= self.deadline:
            return True
        self.skipped.append(what)
        return False


def models(folder: Path, plan: GpuPlan) -> dict[str, Path]:
    """The model files, written on the first call."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name in plan.shapes:
        paths[name] = folder / f"random-q4_k_m-{name}.gguf"
        if not paths[name].exists():
            part = paths[name].with_suffix(".part")
            random_q4.write(part, random_q4.SHAPES.get(name, _SMALL))
            part.rename(paths[name])
    return paths


def config(paths: dict[str, Path], plan: GpuPlan) -> str:
    """Both models under a budget that holds one of them; one place more than streams, for the prompt beside them."""
    tables = "".join(
        f'[models."{name}"]\npath = "{path}"\ncontext = {plan.context}\nparallel = {max(plan.streams) + 1}\n'
        for name, path in paths.items()
    )
    memory = f'[memory]\ndevice = "{plan.device}"\nbudget = "{plan.budget}"\n'
    return f"{memory}[scheduler]\nmin_residency_s = 0\n{tables}"


def collect(paths: dict[str, Path], plan: GpuPlan, clock: Clock, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures. Raises RuntimeError."""
    told: dict[str, Any] = {"models": {name: {} for name in paths}, "ledger": [], "swap_s": []}
    with running(config(paths, plan)) as server:
        for name, figures in told["models"].items():
            if clock.allows(f"{name}: serving", 40):
                say(f"{name}: serving")
                figures.update(_serve(server.url, name, plan, say, told["ledger"]))
        names = list(paths)
        for index in range(N_SWAPS):
            if clock.allows("swap", 30):
                say(f"swap {index + 1}/{N_SWAPS}")
                told["swap_s"].append(_swap(server.url, names[index % len(names)], plan, told["ledger"]))
    for name, figures in told["models"].items():
        if figures and clock.allows(f"{name}: bare loop", 40):
            say(f"{name}: bare loop")
            _compare(figures, paths[name], plan)
    return told


def _serve(url: str, name: str, plan: GpuPlan, say: Callable[[str], None], ledger: list[Any]) -> dict[str, Any]:
    target = _target(url, name, ledger)
    rows = measure(
        target, plan.streams, n_prompt=plan.n_prompt, n_generate=plan.n_generate, rounds=plan.rounds, say=say
    )
    prompts = Prompts(target.token_ids)
    first_s = [_ttft_s(url, name, prompts.make(LONG_PROMPT)) for _ in range(3)]
    status = _status(url, name)
    return {
        "rows": rows,
        "prefill_tokens_per_s": LONG_PROMPT / min(first_s),
        "load_s": status["load_s"],
        "gpu_layers": status["gpu_layers"],
        "n_layers": status["n_layers"],
    }


def _target(url: str, name: str, ledger: list[Any]) -> Target:
    """The model, loaded by asking for tokens of it."""
    tokens = _post(url, "/tokenize", {"model": name, "content": TEXT})["tokens"]
    status = _noted(url, name, ledger)
    return Target(url, None, name, status["context"], status["parallel"], tokens)


def _swap(url: str, name: str, plan: GpuPlan, ledger: list[Any]) -> float:
    """Seconds from a request for the absent model to its first token. Raises RuntimeError when it was resident."""
    if _status(url, name)["state"] == "ready":
        raise RuntimeError(f"{name} was still there: the budget {plan.budget} holds all models")
    seconds = _ttft_s(url, name, list(range(48, 48 + plan.n_prompt)))
    _noted(url, name, ledger)
    return seconds


def _ttft_s(url: str, name: str, tokens: Sequence[int]) -> float:
    (answer,) = run(url, [completion(name, tokens, 4)])
    if answer.error:
        raise RuntimeError(answer.error)
    return answer.ttft_s


def _noted(url: str, name: str, ledger: list[Any]) -> dict[str, Any]:
    """The model's status; its load's estimate and size go into the ledger's list."""
    status = _status(url, name)
    keys = ("name", "predicted_bytes", "measured_bytes", "prediction_error")
    ledger.append({key: status[key] for key in keys})
    return status


def _compare(figures: dict[str, Any], path: Path, plan: GpuPlan) -> None:
    layers = -1 if plan.device == "cuda" else 0
    work = Workload(n_prompt=plan.n_prompt, n_generate=plan.n_generate, context=plan.context, gpu_layers=layers)
    bare = baseline.measure(
        baseline.loop_of("gguf"), path, "gguf", work, streams=plan.streams, rounds=plan.rounds, timeout_s=120
    )
    figures["rows"], figures["bare_missing"] = with_baseline(figures["rows"], bare), bare.missing


def _status(url: str, name: str) -> dict[str, Any]:
    with urllib.request.urlopen(url + "/v1/status", timeout=30) as response:
        found: dict[str, Any] = next(line for line in json.load(response)["models"] if line["name"] == name)
    return found


def _post(url: str, path: str, body: dict[str, Any]) -> Any:
    """The JSON answer. Raises RuntimeError."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)
    except urllib.error.HTTPError as refused:
        raise RuntimeError(f"{path}: {refused.code} {refused.read().decode()}") from None


def table(told: dict[str, Any]) -> str:
    """Everything on one screen."""
    lines = [f"{told['card']}; llama-cpp-python {told['about']['llama_cpp']}; Python {told['about']['python']}"]
    lines += [f"build {told['build']}; tests {told['tests']}", ""]
    lines.append("model  streams    tok/s     bare  share  longest ITL in prefill  first token p50")
    for name, figures in told["models"].items():
        for row in figures.get("rows", ()):
            share = "-" if row["efficiency"] is None else f"{row['efficiency']:.2f}"
            lines.append(
                f"{name:6} {row['parallel']:7} {_cell(row['tokens_per_s'], 8)} {_cell(row['bare_tokens_per_s'], 8)} "
                f"{share:>6} {_cell(row['prefill_itl_ms'], 19)} ms {_cell(row['ttft_ms']['p50'], 12)} ms"
            )
    for name, figures in told["models"].items():
        if figures:
            layers = f"{figures['gpu_layers']}/{figures['n_layers']} layers on the card"
            rate = _cell(figures["prefill_tokens_per_s"], 0)
            lines.append(f"{name}: prefill {rate} tok/s, load {figures['load_s']:.2f} s, {layers}")
    if told["swap_s"]:
        lines.append(f"swap to first token: median {median(told['swap_s']):.2f} s, worst {max(told['swap_s']):.2f} s")
    errors = [abs(entry["prediction_error"]) for entry in told["ledger"] if entry["prediction_error"] is not None]
    if errors:
        lines.append(f"ledger error: first load {errors[0]:.1%}, worst {max(errors):.1%}, last {errors[-1]:.1%}")
    lines += [f"left out for want of time: {', '.join(told['skipped'])}"] if told["skipped"] else []
    return "\n".join(lines)


def _cell(value: float | None, width: int) -> str:
    return f"{'-' if value is None else f'{value:.0f}' if value >= 100 else f'{value:.1f}':>{width}}"


def main(arguments: list[str]) -> int:
    """Measure, write `gpu.json`, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--models", type=Path, required=True, help="folder with room for 7 GB")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--seconds", type=float, default=480, help="what does not fit into this is left out")
    parser.add_argument("--card", default="no card")
    parser.add_argument("--build", default="not timed")
    parser.add_argument("--tests", default="not run")
    options = parser.parse_args(arguments)
    clock = Clock(time.monotonic() + options.seconds, [])
    plan = TINY if options.tiny else GpuPlan()
    began = time.monotonic()
    paths = models(options.models.resolve(), plan)
    facts = {"card": options.card, "build": options.build, "tests": options.tests, "about": report.machine()}
    told = {**facts, "models_s": time.monotonic() - began, "skipped": clock.skipped}
    told |= collect(paths, plan, clock, lambda line: print(line, file=sys.stderr, flush=True))
    told = msgspec.to_builtins(told)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(told, indent=1) + "\n")
    print(table(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
