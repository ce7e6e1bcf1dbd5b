"""What large bodies took is given back to the system soon after they are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.server import until
from tests.http.conftest import Server, settings

KINDS: dict[str, dict[str, Any]] = {
    "one text": {"messages": [{"role": "user", "content": "word " * 1_500_000}]},
    "tools": {
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": f"f{i}", "description": "x" * 60_000}} for i in range(120)],
    },
    "messages": {"messages": [{"role": "user", "content": "x" * 1800}] * 4000},
}


@pytest.fixture
def fresh(canary_path: Path, tmp_path: Path) -> Iterator[Server]:
    running = Server(settings(canary_path), tmp_path / "server.log")
    yield running
    assert running.stop() == 0, running.log


def test_large_bodies_leave_no_memory_behind(fresh: Server) -> None:
    process = psutil.Process(fresh.pid)
    assert fresh.chat("hi").status == 200
    assert fresh.chat("x" * 100_000).status == 400  # read in a thread, as large ones are
    base = process.memory_info().rss
    bodies = [json.dumps({"model": "fake", **kind}).encode() for kind in KINDS.values()]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: fresh.post("/v1/chat/completions", bodies[i % len(bodies)]), range(24)))

    assert {answer.status for answer in answers} == {400}
    until(lambda: process.memory_info().rss < 1.3 * base, within_s=60, what="its memory is back")
