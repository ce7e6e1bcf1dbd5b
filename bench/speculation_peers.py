"""Drafted tokens of onecard beside llama-server's own kinds of speculation: one file, one client, servers taking turns.

Each figure is tokens per second of one stream from its request to its last text: a draft model has to read the prompt
too, before the first text there and behind it here.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from bench import llama_server, serving
from bench.speculation_tasks import TASKS
from server.bench.figures import median

OURS: Final = "onecard"
OURS_MTP: Final = "onecard mtp"
PLAIN: Final = "llama-server"
_CONTEXT: Final = 2048
_KINDS: Final = ("ngram-simple", "ngram-map-k", "ngram-mod")
"""Of llama-server's, those that need no other model."""
_ANSWER_WITHIN_S: Final = 120.0


def measure(
    path: Path,
    program: Path,
    *,
    draft: Path | None,
    mtp: bool,
    rounds: int,
    n_generate: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """By task, each side's tokens per second; with a draft model, or a layer that predicts, both use it.

    Raises RuntimeError.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        urls = {name: stack.enter_context(_running(name, path, program, draft)) for name in _sides(draft, mtp=mtp)}
        for url in urls.values():
            _tokens_per_s(url, "Once", n_generate)
        for task in TASKS:
            taken: dict[str, list[float]] = {name: [] for name in urls}
            for number in range(rounds):
                for name in [*urls][:: -1 if number % 2 else 1]:
                    taken[name].append(_tokens_per_s(urls[name], TASKS[task][number % 8], n_generate))
            found[task] = _told(taken)
            say(f"{task}: {found[task]}")
    return found


def _sides(draft: Path | None, *, mtp: bool) -> list[str]:
    if mtp:
        return [OURS_MTP, PLAIN, "draft-mtp"]
    return [OURS, PLAIN, *_KINDS] if draft is None else [OURS, PLAIN, "draft-simple"]


def _told(taken: Mapping[str, list[float]]) -> str:
    """Medians, and what the best of the others is behind or ahead."""
    medians = {name: median(values) for name, values in taken.items()}
    own, *others = medians
    best = max(others, key=lambda name: medians[name])
    ratio = median([ours / theirs for ours, theirs in zip(taken[own], taken[best], strict=True)])
    sides = ", ".join(f"{name} {value:.1f}" for name, value in medians.items())
    return f"{sides} tokens/s; {ratio:.2f}x {best}"


@contextlib.contextmanager
def _running(name: str, path: Path, program: Path, draft: Path | None) -> Iterator[str]:
    if name in (OURS, OURS_MTP):
        config = serving.config_text(path, context=_CONTEXT, parallel=1)
        if name == OURS_MTP:
            config += 'speculation = "mtp"\n'
        if draft is not None:
            config += f'speculation = "model:draft"\n[models.draft]\npath = "{draft}"\n'
        with serving.running(config) as ours:
            yield ours.url
        return
    flags = [] if name == PLAIN else ["--spec-type", name]
    if draft is not None and name != PLAIN:
        flags += ["--spec-draft-model", str(draft)]
    with llama_server.running(program, path, context=_CONTEXT, parallel=1, flags=flags) as theirs:
        yield theirs.url


def _tokens_per_s(url: str, prompt: str, n_generate: int) -> float:
    """Of one stream. Raises RuntimeError where a server does not tell how many tokens there were."""
    asked = {
        "model": serving.MODEL_NAME,
        "prompt": prompt,
        "max_tokens": n_generate,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
        "ignore_eos": True,
    }
    body = json.dumps(asked).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
    began, last, n_tokens = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN_S) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if any(choice.get("text") for choice in event.get("choices", ())):
                last = time.perf_counter()
            n_tokens = (event.get("usage") or {}).get("completion_tokens", n_tokens)
    if n_tokens < 2 or last <= began:
        raise RuntimeError(f"{url} told of {n_tokens} tokens within {last - began:.3f} s")
    return n_tokens / (last - began)
