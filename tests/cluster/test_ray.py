"""`onecard cluster` on a Ray of its own: brought up, asked, hurt, shown and taken down."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest

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


def test_a_cluster_comes_up_heals_and_goes(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "onecard.toml"
    config.write_text(
        f'[server]\nport = {port}\n[memory]\ndevice = "cpu"\nbudget = "2GiB"\n'
        '[scheduler]\ntemplate_process = false\n[models.fake]\npath = "demo"\n'
    )
    env = {**os.environ, "XDG_DATA_HOME": str(tmp_path), "ONECARD_TEST_ENGINE": "tests.fakes.engine:load"}
    env["PYTHONPATH"] = str(Path.cwd())
    onecard = [sys.executable, "-m", "server.cli", "cluster"]
    url = f"http://127.0.0.1:{port}"
    log = (tmp_path / "up.log").open("wb")
    up = subprocess.Popen([*onecard, "up", "--config", config, "--nodes", "2"], env=env, stdout=log, stderr=log)
    try:
        until(lambda: up.poll() is not None or is_ready(url, 2), 180)
        assert up.poll() is None, (tmp_path / "up.log").read_text()
        assert chat(url, "hello") == "echo: hello"
        shown = subprocess.run([*onecard, "status"], env=env, capture_output=True, text=True, timeout=60)
        assert shown.stdout.count("node-") == 2, shown
        node = get(url + "/v1/cluster")["nodes"][0]
        os.kill(server_at(node["url"]), signal.SIGKILL)
        assert chat(url, "still there") == "echo: still there"

        def healed():
            found = {n["node"]: n for n in get(url + "/v1/cluster")["nodes"]}[node["node"]]
            return found["up"] and found["url"] != node["url"]

        until(healed, 60)
        servers = {server_at(n["url"]) for n in get(url + "/v1/cluster")["nodes"]}
        down = subprocess.run([*onecard, "down"], env=env, capture_output=True, text=True, timeout=150)
        assert (down.returncode, down.stdout) == (0, "the nodes have ended\n"), down
        assert up.wait(10) == 0
        until(lambda: not any(psutil.pid_exists(pid) for pid in servers), 20)
        again = subprocess.run([*onecard, "down"], env=env, capture_output=True, text=True, timeout=60)
        assert "no cluster of this user runs" in again.stderr
    finally:
        if up.poll() is None:
            up.terminate()
            up.wait(60)
        log.close()
