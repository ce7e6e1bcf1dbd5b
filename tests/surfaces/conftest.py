"""Real servers over the fake engine: one plain, one that keeps little and speaks up often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http.conftest import Server, client, keyed, server, settings

__all__ = ["client", "keyed", "server"]


@pytest.fixture(scope="session")
def small(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that loads slowly, keeps two responses of at most 4 kB, and gives a sign of life every 0.2 s."""
    folder = tmp_path_factory.mktemp("surfaces")
    slow = folder / "slow.gguf"
    slow.write_bytes(canary_path.read_bytes())
    slow.with_name("slow.gguf.fake").write_text("slow 3")
    chosen = settings(canary_path, sse_keepalive_s=0.2, stored_responses=2, stored_responses_bytes=4096)
    chosen["models"]["slow"] = {"path": str(slow), "context": 512, "parallel": 2}
    running = Server(chosen, folder / "server.log", XDG_DATA_HOME=str(folder))
    yield running
    assert running.stop() == 0, running.log


def events_of(body: bytes) -> list[tuple[str, dict]]:
    """The events of a stream, each with its name; there is nothing else in it."""
    found = []
    for block in body.decode().strip().split("\n\n"):
        name, _, data = block.partition("\n")
        assert name.startswith("event: "), block
        assert data.startswith("data: "), block
        found.append((name[7:], json.loads(data[6:])))
    return found
