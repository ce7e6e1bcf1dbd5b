"""Predicted against measured tokens per second: six models with three plans each, cold and once others have taught.

A server of its own with an empty data folder measures this machine through `onecard fit`, then serves each plan to one
client alone. Cold is what it predicts then. Once learned is what it predicts of a plan after other plans of that model
have run, and never that plan itself. The first plan of each model is served once more behind the others: how far both
of its figures lie apart is the machine's own noise, and no prediction can be nearer.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from bench import model, random_moe, random_q4
from bench.model import OUT, Shape
from bench.serving import running

PLANS = {
    "f16": "context = 2048\nparallel = 1\nkv_type = 'f16'",
    "q8_0": "context = 4096\nparallel = 1\nkv_type = 'q8_0'",
    "pool": "context = 2048\nparallel = 4\nkv_type = 'f16'\nkv_tokens = 4096",
}
PROMPT_TOKENS, ANSWER_TOKENS, ANSWERS = 480, 64, 3
LARGER = Shape(n_layers=20, n_embd=1024, n_heads=16, n_heads_kv=4, n_ff=3072, n_vocab=8192)


@dataclass(frozen=True)
class Figure:
    """Tokens per second of one plan."""

    name: str
    predicted: float
    learned: float | None
    """As predicted from the plans of the same model that ran before; None for the first."""
    measured: float
    prefill: float
    measured_prefill: float | None
    before: float | None = None
    """Of the same plan earlier in the run; then `learned` was predicted from that plan itself."""


def models() -> dict[str, str]:
    """Name -> path, or the name of a built-in model."""
    larger = OUT / "random-q4-larger.gguf"
    if not larger.exists():
        OUT.mkdir(exist_ok=True)
        random_q4.write(larger, LARGER)
    files = {"q4": model.path(), "q8": model.path(quantisation="Q8_0"), "larger": larger, "moe": random_moe.path()}
    return {"demo": "demo", "smollm2": "smollm2", **{name: str(file) for name, file in files.items()}}


def config(paths: dict[str, str]) -> str:
    """Every model with every plan, one after the other in memory; drafts would make a token cost less than a step."""
    tables = [
        f'[models."{name}-{plan}"]\npath = "{path}"\n{keys}\n'
        for name, path in paths.items()
        for plan, keys in PLANS.items()
    ]
    return "\n".join(["[scheduler]\npreload = []", "[defaults]\nspeculation = 'off'", *tables])


def measure() -> Iterator[Figure]:
    """Serve and time each of them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        subprocess.run([sys.executable, "-m", "server.cli", "fit", "demo"], check=True, stdout=subprocess.DEVNULL)
        paths = models()
        with running(config(paths)) as server:
            plans = [f"{name}-{plan}" for name in paths for plan in PLANS]
            cold = {plan: _get(server.url, f"/v1/capacity?model={plan}")["speed"] for plan in plans}
            for name in paths:
                first, *others = (f"{name}-{plan}" for plan in PLANS)
                yield (earlier := _timed(server.url, first, cold[first], None))
                for plan in (*others, first):
                    told = _get(server.url, f"/v1/capacity?model={plan}")["speed"]
                    found = _timed(server.url, plan, cold[plan], told)
                    yield replace(found, before=earlier.measured) if plan == first else found


def _timed(url: str, name: str, cold: dict[str, Any], learned: dict[str, Any] | None) -> Figure:
    rates = [_answer(url, name) for _ in range(ANSWERS + 1)][1:]
    status = next(m for m in _get(url, "/v1/status")["models"] if m["name"] == name)
    urllib.request.urlopen(
        urllib.request.Request(
            f"{url}/v1/models/{name}/unload", data=b"{}", method="POST", headers={"content-type": "application/json"}
        )
    ).close()
    return Figure(
        name,
        cold["decode_tokens_per_s"],
        None if learned is None else learned["decode_tokens_per_s"],
        statistics.median(rates),
        cold["prefill_tokens_per_s"],
        status["speed"]["measured_prefill_tokens_per_s"],
    )


def _answer(url: str, name: str) -> float:
    """Tokens per second between the first and the last of one streamed answer."""
    body = {
        "model": name, "prompt": model.digits(PROMPT_TOKENS, time.monotonic_ns()), "max_tokens": ANSWER_TOKENS,
        "stream": True, "ignore_eos": True, "temperature": 0, "stream_options": {"include_usage": True},
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    first = last = 0.0
    n_tokens = 0
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                n_tokens = (chunk.get("usage") or {}).get("completion_tokens", n_tokens)
                if chunk["choices"]:
                    last = time.perf_counter()
                    first = first or last
    return (n_tokens - 1) / (last - first)


def _get(url: str, route: str) -> Any:
    with urllib.request.urlopen(url + route, timeout=60) as answer:
        return json.load(answer)


def show() -> None:
    """Print a line for each plan as it comes, and the errors of all at the end."""
    errors: dict[str, list[float]] = {}

    def told(kind: str, measured: float, of: float) -> str:
        error = measured / of - 1
        errors.setdefault(kind, []).append(error)
        return f"{kind} {of:7.1f} {100 * error:+6.1f} %"

    for one in measure():
        words = [f"{one.name:14} {one.measured:7.1f}"]
        if one.before is None:
            words.append(told("cold", one.measured, one.predicted))
            words += [told("learned", one.measured, one.learned)] if one.learned is not None else []
        else:
            words.append(told("the same plan before", one.measured, one.before))
            words += [told("learned of itself", one.measured, one.learned)] if one.learned is not None else []
        print("  ".join([*words, f"prompts {one.prefill:7.0f} measured {one.measured_prefill or 0:7.0f}"]), flush=True)
    for kind, of in errors.items():
        sizes = [100 * abs(error) for error in of]
        near = ", ".join(f"{sum(size <= most for size in sizes)} of {len(sizes)} within {most} %" for most in (10, 20))
        print(f"{kind}: mean {statistics.mean(sizes):.1f} %, worst {max(sizes):.1f} %, {near}")


if __name__ == "__main__":
    show()
