"""Model files changed at random, each loaded and asked through a real server.

`--full-counts` makes 1000 of each kind, `MUTANTS=seed:count` others. What fails is named by its seed.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import demo
from tests.e2e.server import Server, serving
from tests.models import mutants

HANGS_S = 10.0
USES = 2
"""Of a name: a third failure in a minute would quarantine it."""
NO_WORDS = re.compile(
    r"\b[A-Z]\w*(Error|Exception|Interrupt)\b|SIG[A-Z]+\b(?! \()|Traceback|could not be prepared|/tmp/|0x[0-9a-f]{6}"
)
SHORT = {"gguf": 16, "folder": 8}


@dataclass
class Figures:
    """What came of the mutants."""

    served: int = 0
    refused: int = 0
    longest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    said: Counter[str] = field(default_factory=Counter)


def post(url: str, body: object = None) -> tuple[int, str]:
    data = json.dumps(body if body is not None else {}).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read())["error"]["message"])


def try_one(server: Server, name: str, figures: Figures, told: str) -> None:
    """Load it, ask it, unload it."""
    took_s = 0.0
    for route, body in (
        (f"/v1/models/{name}/load", None),
        ("/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
        ("/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 3}),
    ):
        began = time.monotonic()
        try:
            status, said = post(server.url + route, body)
        except OSError as error:
            figures.wrong.append(f"{told}: {route} has no answer ({error})")
            break
        took_s = time.monotonic() - began
        figures.longest_s = max(figures.longest_s, took_s)
        if took_s > HANGS_S:
            figures.wrong.append(f"{told}: {route} took {took_s:.1f} s: {said}")
        if status != 200:
            figures.said[re.sub(r"\d+|'[^']*'", "#", said)[:160]] += 1
            if len(said.split()) < 5 or NO_WORDS.search(said):
                figures.wrong.append(f"{told}: {status} {said}")
        if status != 200 and route.endswith("load"):
            figures.refused += 1
            break
    else:
        figures.served += 1
        post(f"{server.url}/v1/models/{name}/unload")
    if server.process.poll() is not None:
        figures.wrong.append(f"{told}: THE SERVER ENDED")


def run(kind: str, first_seed: int, count: int, place: Path) -> Figures:
    """So many mutants through one server."""
    suffix = ".gguf" if kind == "gguf" else ""
    good = demo.GGUF_PATH if kind == "gguf" else demo.HF_PATH
    models = {f"m{n}": str(place / f"m{n}{suffix}") for n in range(-(-count // USES))}
    config = place / "onecard.toml"
    tables = "".join(
        f'[models.{name}]\npath = "{path}"\ncontext = 256\nparallel = 2\n' for name, path in models.items()
    )
    config.write_text(tables + f'[models.good]\npath = "{good}"\ncontext = 256\nparallel = 2\n')
    figures, n_names = Figures(), len(models)
    with serving(place, models={}, flags=("--config", str(config))) as server:
        assert post(f"{server.url}/v1/models/good/load")[0] == 200  # imports are done once
        for n in range(count):
            seed, name = first_seed + n, f"m{n % n_names}"
            target = Path(models[name])
            told = f"{kind} seed {seed}: {mutants.KINDS[kind](random.Random(f'{kind} {seed}'), target)}"
            try_one(server, name, figures, told)
            if server.process.poll() is not None:
                break
            shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink(missing_ok=True)
        else:
            began = time.monotonic()
            assert server.get("/health")["status"] == "ok"
            assert time.monotonic() - began < 1
            assert server.stop(signal.SIGTERM) == 0
    return figures


@pytest.fixture
def counts(full_counts: bool) -> Iterator[tuple[int, dict[str, int]]]:
    if given := os.environ.get("MUTANTS"):
        seed, count = map(int, given.split(":"))
        yield seed, dict.fromkeys(SHORT, count)
    else:
        yield 0, dict.fromkeys(SHORT, 1000) if full_counts else SHORT


@pytest.mark.engine
@pytest.mark.parametrize("kind", mutants.KINDS)
def test_no_file_ends_the_server_or_hangs_or_fails_without_a_reason(
    kind: str, counts: tuple[int, dict[str, int]], tmp_path: Path
) -> None:
    seed, n = counts

    figures = run(kind, seed, n[kind], tmp_path)

    print(
        f"{kind}: {n[kind]} from seed {seed}: {figures.served} served, {figures.refused} refused,"
        f" longest {figures.longest_s:.1f} s"
    )
    for said, times in figures.said.most_common(60):
        print(f"{times:5} {said}")
    assert figures.wrong == [], "\n".join(figures.wrong)
