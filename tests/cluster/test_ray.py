"""`onecard cluster` on a Ray of its own: brought up, asked, hurt, shown and taken down."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from server.cluster.node_server import NodeOrder
from server.settings.config import Settings
from tests.e2e.server import until

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]' (500 MB)"
)


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def chat(url, text):
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": text}]}).encode()
    request = urllib.request.Request(url + "/v1/chat/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def is_ready(url, n):
    try:
        return sum(node["up"] for node in get(url + "/v1/cluster")["nodes"]) >= n
    except OSError:
        return False


def server_at(url):
    port = int(url.rsplit(":", 1)[1])
    return next(c.pid for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port)


@contextlib.contextmanager
def cluster(folder, *options):
    """Brought up with these options: its address, its process, and what runs a command beside it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "onecard.toml"
    config.write_text(
        f'[server]\nport = {port}\n[memory]\ndevice = "cpu"\nbudget = "2GiB"\n'
        '[scheduler]\ntemplate_process = false\n[models.fake]\npath = "demo"\nparallel = 8\n'
    )
    env = {**os.environ, "XDG_DATA_HOME": str(folder), "ONECARD_TEST_ENGINE": "tests.fakes.engine:load"}
    env["PYTHONPATH"] = str(Path.cwd())
    onecard = [sys.executable, "-m", "server.cli", "cluster"]
    url = f"http://127.0.0.1:{port}"

    def run(*words):
        return subprocess.run([*onecard, *words], env=env, capture_output=True, text=True, timeout=150)

    log = folder / "up.log"
    with log.open("wb") as out:
        up = subprocess.Popen([*onecard, "up", "--config", config, *options], env=env, stdout=out, stderr=out)
    try:
        until(lambda: up.poll() is not None or is_ready(url, 1), 180)
        assert up.poll() is None, log.read_text()
        yield url, up, run
    finally:
        if up.poll() is None:
            up.terminate()
            up.wait(60)


def lose_directory():
    """Kill the actor that nodes tell of themselves; Ray starts another one, which knows nothing."""
    child = (
        "import ray\n"
        "ray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
        "ray.kill(ray.get_actor('directory', namespace='onecard'), no_restart=False)\n"
    )
    subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, timeout=120)


class Streams(ThreadPoolExecutor):
    """Streams that run, each read in a thread of its own."""

    def __init__(self, url):
        super().__init__(64)
        self.url = url

    def open(self, directive):
        """The node that answers, once it has begun to, and all of the stream to come."""
        body = {"model": "fake", "messages": [{"role": "user", "content": directive}], "stream": True}
        request = urllib.request.Request(
            self.url + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        answer = urllib.request.urlopen(request, timeout=120)
        return answer.headers["x-onecard-node"], self.submit(answer.read)


def test_a_cluster_comes_up_heals_and_goes(tmp_path):
    with cluster(tmp_path, "--nodes", "2") as (url, up, run):
        until(lambda: is_ready(url, 2), 60)
        assert chat(url, "hello") == "echo: hello"
        shown = run("status")
        assert shown.stdout.count("node-") == 2, shown
        node = get(url + "/v1/cluster")["nodes"][0]
        os.kill(server_at(node["url"]), signal.SIGKILL)
        assert chat(url, "still there") == "echo: still there"

        def healed():
            found = {n["node"]: n for n in get(url + "/v1/cluster")["nodes"]}[node["node"]]
            return found["up"] and found["url"] != node["url"]

        until(healed, 60)
        lose_directory()
        for n in range(20):
            assert chat(url, f"directory lost {n}") == f"echo: directory lost {n}"
        with urllib.request.urlopen(url + "/health", timeout=5) as answer:
            names = [name.lower() for name in answer.headers]
        assert len(names) == len(set(names)), "Serve's proxy and the gate both label an answer"
        servers = {server_at(n["url"]) for n in get(url + "/v1/cluster")["nodes"]}
        with Streams(url) as streams:
            words = streams.open("!slow 100 120")[1]
            down = run("down")
            assert b"[DONE]" in words.result(30), "a stream that ends within [server] drain_s was cut"
        assert (down.returncode, down.stdout) == (0, "the nodes have ended\n"), down
        assert "2 nodes left: 1 request may end within 30 s" in down.stderr
        assert up.wait(10) == 0
        until(lambda: not any(psutil.pid_exists(pid) for pid in servers), 20)
        assert "no cluster of this user runs" in run("down").stderr


def test_an_edge_that_serve_ends_lives_as_long_as_streams_of_its_nodes_may():
    from server.cluster import on_ray

    order = on_ray.ClusterOrder(Settings(), NodeOrder(None, "", drain_s=120), 1, 1, 0.0, 1.0)
    edge = on_ray.application(order)
    nodes = edge._bound_deployment.init_args[1]
    edge_s, nodes_s = (one._bound_deployment._deployment_config.graceful_shutdown_timeout_s for one in (edge, nodes))
    assert edge_s >= nodes_s > on_ray.LEAVE_WITHIN_S + order.node.drain_s


def test_nodes_follow_what_waits_and_one_that_leaves_ends_its_streams(tmp_path):
    """Given full queues, then there is another node; given idle ones, then one leaves, and no stream is cut."""
    enough = threading.Event()

    def asks(streams, n):
        while not enough.is_set():
            streams.open(f"!slow 5 20 {n}")[1].result(120)

    with cluster(tmp_path, "--nodes", "1", "--most", "2", "--idle", "4") as (url, _, _), Streams(url) as streams:
        try:
            crowd = [streams.submit(asks, streams, n) for n in range(32)]
            until(lambda: is_ready(url, 2), 120)
            until(lambda: all("fake" in node["models"] for node in get(url + "/v1/cluster")["nodes"]), 60)
        finally:
            enough.set()
        for one in crowd:
            one.result(120)
        until(lambda: not any(node["models"]["fake"]["running"] for node in get(url + "/v1/cluster")["nodes"]), 20)
        long = [streams.open(f"!slow 100 200 {n}") for n in range(2)]
        assert len({node for node, _ in long}) == 2
        until(lambda: len(get(url + "/v1/cluster")["nodes"]) == 1, 60)
        assert not any(words.done() for _, words in long), "a node leaves while its streams run"
        assert all(b"[DONE]" in words.result(120) for _, words in long)
        assert chat(url, "hello") == "echo: hello"
