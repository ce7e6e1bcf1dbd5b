"""Requests that ask no model, on this tree's server and another's, taking turns: what the way to a route costs."""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.serving import Server, running

CHAT = json.dumps({"model": "nope", "messages": [{"role": "user", "content": "hi"}]}).encode()
ASKED: Mapping[str, tuple[str, str, bytes | None]] = {
    "health": ("GET", "/health", None),
    "models": ("GET", "/v1/models", None),
    "chat_404": ("POST", "/v1/chat/completions", CHAT),
    "embeddings_404": ("POST", "/v1/embeddings", b'{"model":"nope","input":"x"}'),
}
TURN = 50
"""Requests in a row on one side."""


@dataclass
class _Side:
    server: Server
    connection: http.client.HTTPConnection
    seconds: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)

    def turn(self, name: str) -> None:
        method, path, body = ASKED[name]
        headers = {"content-type": "application/json"} if body else {}
        spent = self.server.cpu_seconds()
        for _ in range(TURN):
            began = time.perf_counter()
            self.connection.request(method, path, body, headers)
            self.connection.getresponse().read()
            self.seconds.setdefault(name, []).append(time.perf_counter() - began)
        self.cpu_s[name] = self.cpu_s.get(name, 0.0) + self.server.cpu_seconds() - spent


def measure(other: Path, *, rounds: int) -> dict[str, float]:
    """Medians in microseconds and the server's own CPU time for each request, and this tree's share of the other's."""
    with contextlib.ExitStack() as stack:
        sides = []
        for tree in (Path.cwd(), other):
            server = stack.enter_context(running(tree=tree))
            address = urlsplit(server.url)
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
            sides.append(_Side(server, connection))
        for number in range(rounds + 1):
            for name in ASKED:
                for side in sides if number % 2 else sides[::-1]:
                    side.turn(name)
            if number == 0:  # the first turn warms up
                for side in sides:
                    side.seconds, side.cpu_s = {}, {}
        figures: dict[str, float] = {}
        for name in ASKED:
            ours, theirs = (statistics.median(side.seconds[name]) * 1e6 for side in sides)
            own, their = (side.cpu_s[name] / len(side.seconds[name]) * 1e6 for side in sides)
            figures |= {f"{name}_us": ours, f"{name}_other_us": theirs, f"{name}_share": ours / theirs}
            figures |= {f"{name}_cpu_us": own, f"{name}_cpu_share": own / their}
        return figures
