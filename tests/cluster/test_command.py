"""`onecard cluster up` looks at cards, ports and other clusters before it starts Ray; commands find a cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import MutableMapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.cli.cluster_end import ClusterNote
from server.cli.clusters import Wish, _gpus_per_node, bring_up
from server.cli.console import CliError
from server.cli.finding import ask_first, running_server
from server.cluster.application import Application
from server.cluster.labels import labelled_by_serve
from server.cluster.notices import Notice
from server.settings.config import Settings
from tests.cluster.conftest import Edge
from tests.e2e.server import until
from tests.http.conftest import settings
from tests.present import present


def wish(nodes: int, *, gpus: float | None = None, address: str | None = None) -> Wish:
    return Wish(nodes, nodes, 600.0, None, None, address, 1.0, gpus)


def test_nodes_without_a_card_of_their_own_are_refused_at_once() -> None:
    with pytest.raises(CliError, match=r"2 nodes need 2 cards, and this machine has 1. hint: --gpus 0.5"):
        _gpus_per_node(1.0, wish(2))
    with pytest.raises(CliError, match=r"--gpus 0.5"):
        _gpus_per_node(2.0, wish(3))
    assert _gpus_per_node(2.0, wish(3, gpus=0.5)) == 0.5
    assert _gpus_per_node(0.0, wish(2)) == 0
    assert _gpus_per_node(2.0, wish(2)) == 1
    assert _gpus_per_node(1.0, wish(4, address="10.0.0.5:6379")) == 1


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user with a folder of his own."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "onecard.toml").write_text("[models.demo]\npath = 'demo'\n")
    return tmp_path / "onecard.toml"


def test_a_second_cluster_is_refused_and_the_first_stays_known(config: Path) -> None:
    command = [sys.executable, "-c", "print(input('there\\n'))", "cluster", "up"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert present(other.stdout).readline() == b"there\n"
        ClusterNote(other.pid, "http://127.0.0.1:1").save()

        with pytest.raises(CliError, match=r"a cluster runs at http://127\.0\.0\.1:1\. hint: `onecard cluster down`"):
            bring_up(config, wish(2))

        assert ClusterNote.read() == ClusterNote(other.pid, "http://127.0.0.1:1")
    finally:
        other.communicate(b"\n")


def test_a_port_that_something_else_has_is_refused(config: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as taken:
        threading.Thread(target=taken.serve_forever).start()
        port = taken.server_port
        config.write_text(f"[server]\nport = {port}\n" + config.read_text())

        with pytest.raises(CliError, match=rf"http://127\.0\.0\.1:{port} is taken\. hint: end what listens there"):
            bring_up(config, wish(2))
        taken.shutdown()


def test_commands_know_a_cluster_behind_a_proxy_that_signs_with_its_own_name(canary_path: Path, tmp_path: Path) -> None:
    edge = Edge(tmp_path, canary_path, behind_proxy=True)
    try:
        edge.start("a")
        until(lambda: edge.up() == {"a"}, 20)
        settings = Settings.model_validate({"server": {"port": edge.port}})
        assert edge.get("/v1/models").headers["server"] == "uvicorn"

        asked = ask_first("fake", url=None, settings=settings)
        unknown = ask_first("other", url=None, settings=settings)

        assert asked.name == "fake"
        assert "does not serve other" in unknown.why_not
        assert running_server(None, settings) is not None
    finally:
        edge.close()


def test_a_body_that_is_too_large_is_read_to_its_end_behind_a_proxy(canary_path: Path) -> None:
    """The proxy cuts off what nothing reads, and the client that still sends would see a reset in place of its 413."""
    n_parts = 5
    left = [{"type": "http.request", "body": b"x" * 2**21, "more_body": n < n_parts - 1} for n in range(n_parts)]
    unread_at_answer: list[int] = []

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 413
            unread_at_answer.append(len(left))

    async def no_nodes() -> list[Notice]:
        return []

    async def ask(n_bytes: int) -> None:
        application = Application(Settings.model_validate(settings(canary_path)), no_nodes, key=None)
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
                 "headers": [*headers, (b"content-length", str(n_bytes).encode())]}  # fmt: skip
        await labelled_by_serve(application)(scope, receive, send)

    asyncio.run(ask(n_parts * 2**21))
    assert unread_at_answer == [0]
    left.append({"type": "http.request", "body": b"", "more_body": True})
    asyncio.run(ask(2**40))
    assert unread_at_answer == [0, 1], "a body of any size is not read"
