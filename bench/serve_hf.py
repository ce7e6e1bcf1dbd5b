"""`onecard serve` against `transformers serve --continuous-batching` over HTTP: the same folder, weights and requests.

One server at a time, taking turns. 8 bits are a folder stored so, because only its own configuration can tell
`transformers serve` to leave outliers out, as ours does.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench import folder, model, serving
from bench.bnb import N_GENERATE, N_WARM, QUANTIZATIONS, REPEATS, store
from server.bench.figures import median
from server.bench.load import Answer, SentRequest, chat, run, summary

START_TIMEOUT_S = 90.0
CACHE_FLAGS = ("--cb-num-blocks", "64", "--cb-max-batch-tokens", "512")
"""Else it takes nine tenths of all memory with the first request, which lasts twenty seconds."""
OWN_FIELDS = ("stream_options", "ignore_eos")
"""Those that `transformers serve` refuses or ignores."""
NO_END = "the stream ended without [DONE]"


@dataclass(frozen=True)
class Weights:
    """A folder and what a server is told of its weights."""

    path: Path
    quantization: str = "none"


def measure(rounds: int) -> dict[str, float]:
    """Both servers in every type at 1 and 8 streams; ratios are of medians."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as made:
        for name in QUANTIZATIONS:
            weights = _weights(name, Path(made))
            sides: dict[str, list[dict[str, float]]] = {"": [], "transformers ": []}
            for _ in range(rounds):
                with _onecard(weights) as url:
                    sides[""].append(_measured(url, serving.MODEL_NAME, theirs=False))
                with _transformers(weights) as url:
                    sides["transformers "].append(_measured(url, str(weights.path), theirs=True))
            figures |= _figures(name, sides)
    return figures


def _weights(name: str, made: Path) -> Weights:
    if name != "bnb-8bit":
        return Weights(folder.path(), name)
    store(name, str(folder.path()), str(made))
    return Weights(made / name)


def _figures(name: str, sides: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for streams in REPEATS:
        for key, unit in (("tokens_per_s", "tokens/s"), ("ttft_p99_ms", "first token p99 ms")):
            mine, its = (median([taken[f"{key} {streams}"] for taken in runs]) for runs in sides.values())
            begin = f"{name}, {streams} streams: "
            figures |= {begin + unit: mine, f"{begin}transformers {unit}": its, f"{begin}{unit} /": mine / its}
    return figures


def _measured(url: str, name: str, *, theirs: bool) -> dict[str, float]:
    """Short requests first, then those that count: medians of the rates, times to a first token over all of them."""
    found: dict[str, float] = {}
    for streams in REPEATS:
        _ended(run(url, [_request(name, seed, N_WARM, theirs=theirs) for seed in range(900, 900 + streams)]))
    for streams, repeats in REPEATS.items():
        rates: list[float] = []
        everything: list[Answer] = []
        for repeat in range(repeats):
            seeds = range(repeat * 10, repeat * 10 + streams)
            answers = _ended(run(url, [_request(name, seed, N_GENERATE, theirs=theirs) for seed in seeds]))
            rates.append(summary(answers)["tokens_per_s"])
            everything += answers
        found[f"tokens_per_s {streams}"] = median(rates)
        found[f"ttft_p99_ms {streams}"] = summary(everything)["ttft_p99_ms"]
    return found


def _request(name: str, seed: int, n_tokens: int, *, theirs: bool) -> SentRequest:
    request = chat(name, model.digits(32, seed), n_tokens)
    if not theirs:
        return request
    body = {key: value for key, value in request.body.items() if key not in OWN_FIELDS}
    return replace(request, body={**body, "generation_config": json.dumps({"eos_token_id": -1})})


def _ended(answers: Sequence[Answer]) -> Sequence[Answer]:
    """`transformers serve` ends a stream with its usage, without [DONE]. Raises RuntimeError for a short answer."""
    for answer in answers:
        if answer.error == NO_END and answer.completion_tokens:
            answer.error = None
    summary(answers)
    return answers


@contextlib.contextmanager
def _onecard(weights: Weights) -> Iterator[str]:
    config = serving.config_text(weights.path, context=1024, parallel=max(REPEATS))
    with serving.running(config + f'quantization = "{weights.quantization}"\n') as server:
        yield server.url


@contextlib.contextmanager
def _transformers(weights: Weights) -> Iterator[str]:
    """`transformers serve` on a free port. Raises RuntimeError with what it wrote."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = [] if weights.quantization == "none" else ["--quantization", weights.quantization]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(weights.path), *wanted]
    flags = ["--continuous-batching", "--device", "cpu", "--host", "127.0.0.1", "--port", str(port), *CACHE_FLAGS]
    with tempfile.TemporaryFile("w+") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen([*command, *flags], stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            if not serving.answers(process, url, within_s=START_TIMEOUT_S):
                log.seek(0)
                raise RuntimeError(f"transformers serve did not become ready; it wrote:\n{log.read()[-4000:]}")
            yield url
        finally:
            serving.end(process, within_s=20)
