"""onecard beside llama-server and the bare `llama_decode` loop: one run, one client, the three taking turns.

Both servers have the same file, the same slots and llama.cpp as it comes; what is compared is tokens per second, the
longest inter-token latency and the time to first token, as a client sees them.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backends.workload import Workload
from bench import llama_server, model, serving
from server.bench import baseline
from server.bench.figures import median
from server.bench.load import Answer, SentRequest, chat, run, summary

STREAMS = (1, 8)
OURS, PEER, BARE = "onecard", "llama-server", "bare loop"
BUSY = (
    "import sys, time\n"
    "share, period = float(sys.argv[1]), 0.02\n"
    "while True:\n"
    "    began = time.perf_counter()\n"
    "    while time.perf_counter() - began < share * period: pass\n"
    "    if share < 1: time.sleep((1 - share) * period)\n"
)
"""A process that computes for so much of every 20 ms, until it is ended."""


@dataclass(frozen=True)
class Terms:
    """What is measured."""

    path: Path
    rounds: int
    n_prompt: int = 32
    n_generate: int = 256
    context: int = 2048
    beside: float = 0.0
    """The share of a core that another process takes meanwhile."""


@dataclass(frozen=True)
class Taken:
    """One run of one side."""

    tokens_per_s: float
    longest_itl_ms: float = 0.0
    ttft_ms: float = 0.0


Sides = Mapping[str, list[Taken]]


def measure(terms: Terms, program: Path, *, say: Callable[[str], None]) -> dict[str, str]:
    """Ratios and what they were made of, by number of streams. Raises RuntimeError."""
    config = serving.config_text(terms.path, context=terms.context, parallel=max(STREAMS))
    peer = llama_server.running(program, terms.path, context=terms.context, parallel=max(STREAMS))
    figures: dict[str, str] = {}
    with serving.running(config) as ours, peer as theirs:
        urls = {OURS: ours.url, PEER: theirs.url}
        n_prompt = {name: _warm(url, terms) for name, url in urls.items()}
        with neighbour(terms.beside):
            for streams in STREAMS:
                sides: dict[str, list[Taken]] = {name: [] for name in (*urls, BARE)}
                for index in range(terms.rounds):
                    _round(terms, urls, n_prompt[OURS], streams, index, sides)
                    rates = {name: f"{runs[-1].tokens_per_s:.1f}" for name, runs in sides.items()}
                    say(f"{streams} at once, round {index + 1}/{terms.rounds}, tokens/s: {rates}")
                figures |= _figures(sides, f"{streams} stream{'s' if streams > 1 else ''}")
    return figures


def _warm(url: str, terms: Terms) -> int:
    """Load the model, touch every path once; tokens of a prompt with what the template writes around it."""
    answers = [_send(url, [_request(terms, 900 + i) for i in range(streams)], 8) for streams in STREAMS]
    return answers[0][0].prompt_tokens


def _round(
    terms: Terms, urls: Mapping[str, str], n_prompt: int, streams: int, index: int, sides: dict[str, list[Taken]]
) -> None:
    """One run of each side, in turn from the other end: what changes slowly falls on all alike."""
    requests = [_request(terms, 10 * index + i) for i in range(streams)]
    for name in list(sides) if index % 2 == 0 else list(reversed(sides)):
        if name in urls:
            taken = summary(_send(urls[name], requests, terms.n_generate))
            figures = Taken(taken["tokens_per_s"], taken["itl_max_ms"], taken["ttft_p50_ms"])
        else:
            figures = Taken(_bare(terms, streams, n_prompt))
        sides[name].append(figures)


def _bare(terms: Terms, streams: int, n_prompt: int) -> float:
    work = Workload(n_prompt=n_prompt, n_generate=terms.n_generate, context=terms.context)
    taken = baseline.measure(baseline.loop_of("gguf"), terms.path, "gguf", work, streams=[streams], rounds=1)
    if taken.missing is not None:
        raise RuntimeError(f"the bare loop failed: {taken.missing}")
    return taken.tokens_per_s[streams]


def _request(terms: Terms, seed: int) -> SentRequest:
    return chat(serving.MODEL_NAME, model.digits(terms.n_prompt, seed), terms.n_generate)


def _send(url: str, requests: list[SentRequest], n_tokens: int) -> list[Answer]:
    limited = [replace(request, body={**request.body, "max_tokens": n_tokens}) for request in requests]
    answers = run(url, limited)
    summary(answers)
    return answers


def _figures(sides: Sides, name: str) -> dict[str, str]:
    """Ratios of the same round first, then what they were made of."""
    figures: dict[str, str] = {}
    ours = sides[OURS]
    for other in (PEER, BARE):
        ratios = [a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, sides[other], strict=True)]
        figures[f"{name}, {OURS} / {other}"] = _spread(ratios, ".2f")
    for side, runs in sides.items():
        figures[f"{name}, {side}, tokens/s"] = _spread([taken.tokens_per_s for taken in runs], ".0f")
    for side in (OURS, PEER):
        runs = sides[side]
        figures[f"{name}, {side}, longest ITL ms"] = _spread([taken.longest_itl_ms for taken in runs], ".0f")
        figures[f"{name}, {side}, TTFT p50 ms"] = _spread([taken.ttft_ms for taken in runs], ".0f")
    return figures


def _spread(values: Sequence[float], digits: str) -> str:
    """Median and range."""
    return f"{median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


@contextlib.contextmanager
def neighbour(share: float) -> Iterator[subprocess.Popen[bytes] | None]:
    """Another process that wants this share of a core, until the block ends; none for 0."""
    if share <= 0:
        yield None
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(share)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
