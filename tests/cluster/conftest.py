"""Two real servers over the fake engine, and the edge of a cluster before them on a socket of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from server.cluster.application import Application
from server.cluster.labels import labelled_by_serve
from server.cluster.notices import Notice, Watch
from server.door.http1 import StrictHttp
from server.settings.config import Settings
from tests.e2e.server import until
from tests.http.conftest import Server, settings
from tests.present import present

KEY = "key-of-the-cluster-0123456789"


class Edge(Server):
    """The edge in a thread of this process, and its nodes; it is asked like any server."""

    def __init__(self, folder: Path, canary: Path, *, behind_proxy: bool = False, **server) -> None:
        """`behind_proxy`: the labels of its answers are those that Ray's proxy leaves and adds."""
        self.folder, self.canary, self.fields = folder, canary, server
        self.nodes: dict[str, Server] = {}
        self.watches: dict[str, Watch] = {}
        self.told: dict[str, tuple[Notice, float]] = {}
        self.lives = 0
        key = KEY if server.get("api_keys") else None
        headers = {"authorization": f"Bearer {KEY}"} if key else {}
        self.http = httpx2.AsyncClient(headers=headers, trust_env=False, timeout=5)
        application: Any = Application(Settings.model_validate(settings(canary, **server)), self.look, key=key)
        http, application = ("h11", labelled_by_serve(application)) if behind_proxy else (StrictHttp, application)
        config = uvicorn.Config(application, http=http, log_config=None, lifespan="off", server_header=behind_proxy)
        self.uvicorn = uvicorn.Server(config)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(2048)  # who connects before the thread has begun waits
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=lambda: self.uvicorn.run([listener]))
        self.thread.start()

    def start(self, name: str) -> None:
        """Begin a life of a node."""
        self.lives += 1
        fields = {**self.fields, "admin_keys": [KEY]} if self.fields.get("api_keys") else self.fields
        self.nodes[name] = Server(settings(self.canary, **fields), self.folder / f"{name}.log")
        self.watches[name] = Watch(name, self.nodes[name].url, str(self.lives), self.http)

    async def look(self):
        """What each node last told, as `NodeServer.told` gives it: one that is slow for once is not gone."""
        watches = dict(self.watches)
        found = await asyncio.gather(*(watch.look() for watch in watches.values()), return_exceptions=True)
        for watch, notice in zip(watches.values(), found, strict=True):
            if not isinstance(notice, BaseException):
                self.told[watch.life] = notice, time.monotonic()
        there = [self.told[watch.life] for watch in self.watches.values() if watch.life in self.told]
        return [replace(notice, age_s=time.monotonic() - at_s) for notice, at_s in there]

    def kill(self, name: str) -> None:
        node = self.nodes.pop(name)
        node.process.kill()
        node.process.wait()
        present(node.process.stdout).close()
        del self.watches[name]

    def cluster(self) -> dict:
        return self.get("/v1/cluster").json()

    def up(self) -> set[str]:
        return {node["node"] for node in self.cluster()["nodes"] if node["up"]}

    def close(self) -> None:
        self.uvicorn.should_exit = True
        self.thread.join(20)
        for node in self.nodes.values():
            node.stop()


def two_nodes(folder: Path, canary: Path, **server) -> Iterator[Edge]:
    edge = Edge(folder, canary, **server)
    try:
        for name in "ab":
            edge.start(name)
        until(lambda: edge.up() == {"a", "b"}, 20)
        yield edge
    finally:
        edge.close()


@pytest.fixture(scope="module")
def edge(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    yield from two_nodes(tmp_path_factory.mktemp("cluster"), canary_path)
