"""The README's walk-through to the letter: the demo model under three names with room for one, through the commands."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.e2e.server import Server, serving

pytestmark = pytest.mark.engine

MIB = 2**20
QUESTION = "What is the capital of France?"


def onecard(server: Server, *arguments: str) -> str:
    done = warm.run("server.cli", [*arguments, "--url", server.url])
    assert done.returncode == 0, done.stderr
    return done.stdout


def events(server: Server, *, last: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with urllib.request.urlopen(f"{server.url}/v1/events?last={last}", timeout=10) as feed:
        while len(found) < last:
            line = feed.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
    return found


def test_three_names_of_one_model_with_room_for_one(tmp_path: Path) -> None:
    models = dict.fromkeys("abc", "demo")
    with serving(tmp_path, models=models, flags=("--budget", "64MiB", "--device", "cpu")) as server:
        for name in models:
            assert onecard(server, "run", name, QUESTION) == "The capital of France is Paris.\n"
        page = onecard(server, "ps")
        status = server.get("/v1/status")
        told = events(server, last=10)

    lines = page.splitlines()
    assert re.fullmatch(r"  a +unloaded +-/- .*", lines[1])
    assert re.fullmatch(r"  b +unloaded +-/- .*", lines[2])
    assert re.fullmatch(r"A c +ready +[\d.]+MiB/[\d.]+MiB +4096 +0/2 .*", lines[3])
    assert re.fullmatch(r"\[A+~+\] [\d.]+ MiB \+ [\d.]+ MiB of 64 MiB on cpu", lines[4])
    assert any(line.endswith("~ is the prefix cache") for line in lines[5:]), "below what is told of single models"
    assert [(t["what"], t["model"]) for t in told] == [
        ("loading", "a"),
        ("loaded", "a"),
        ("evicted", "a"),
        ("unloaded", "a"),
        ("loading", "b"),
        ("loaded", "b"),
        ("evicted", "b"),
        ("unloaded", "b"),
        ("loading", "c"),
        ("loaded", "c"),
    ]
    evicted = [t for t in told if t["what"] == "evicted"]
    assert [(t["reason"], t["figures"]["for"]) for t in evicted] == [("room", "b"), ("room", "c")]
    assert all(32 * MIB < t["figures"]["freed_bytes"] <= 64 * MIB for t in evicted)
    memory, resident = status["memory"], next(m for m in status["models"] if m["name"] == "c")
    assert memory["reserved_bytes"] == resident["measured_bytes"] <= memory["budget_bytes"] == 64 * MIB
