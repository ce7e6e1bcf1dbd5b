"""A real server process over the fake engine, started once per session, and a plain client for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

from tests import warm
from tests.e2e.server import until
from tests.present import present

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-canary-0123456789-key"
ADMIN = "sk-admin-0123456789-key"


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    method: str = "GET"

    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> dict:
        """The four keys, wherever the client of this path finds them."""
        found = self.json()
        if isinstance(found["error"], dict):
            return found["error"]
        return {"message": found.pop("error"), **found}


class Server:
    """One server process."""

    def __init__(self, settings: dict, log: Path, **env: str) -> None:
        self.log_path = log
        given = {**os.environ, "ONECARD_TEST_ENGINE": "tests.fakes.engine:load", **env}
        with log.open("wb") as stderr:
            self.process = warm.popen(
                "tests.http.launcher",
                [json.dumps(settings)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=given,
            )
        line = present(self.process.stdout).readline()
        assert line, log.read_text()
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def call(self, method: str, path: str, body=None, *, headers: dict | None = None, timeout: float = 20) -> Answer:
        """One request on its own connection; a body that is no bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        send = {"content-type": "application/json"} if method == "POST" else {}
        try:
            connection.request(method, path, data, {**send, **(headers or {})})
            response = connection.getresponse()
            received = {k.lower(): v for k, v in response.getheaders()}
            return Answer(response.status, received, response.read(), method)
        finally:
            connection.close()

    def get(self, path: str, **kwargs) -> Answer:
        return self.call("GET", path, **kwargs)

    def post(self, path: str, body=None, **kwargs) -> Answer:
        return self.call("POST", path, body, **kwargs)

    def chat(self, text: str = "control", **fields) -> Answer:
        body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
        return self.post("/v1/chat/completions", body)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def raw(self, data: bytes) -> bytes:
        """Everything the server sends until it closes, or until it has been silent for a while."""
        with self.connect() as connection:
            connection.settimeout(1.5)
            connection.sendall(data)
            received = b""
            try:
                while chunk := connection.recv(65536):
                    received += chunk
            except TimeoutError:
                pass
            except ConnectionResetError:
                pass
            return received

    def open_stream(self, text: str, path: str = "/v1/chat/completions", **fields) -> socket.socket:
        """A connection on which a streamed request was sent."""
        body = json.dumps(
            {"model": "fake", "messages": [{"role": "user", "content": text}], "stream": True, **fields}
        ).encode()
        connection = self.connect()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        return connection

    def status(self) -> dict:
        return self.get("/v1/status").json()

    def model(self, name: str = "fake") -> dict:
        return next(model for model in self.status()["models"] if model["name"] == name)

    def wait_idle(self, within_s: float = 5.0) -> None:
        """Until no model runs or queues anything."""
        until(lambda: all(not m["busy"] and not m["waiting"] for m in self.status()["models"]), within_s)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            present(self.process.stdout).close()


def settings(canary: Path, **server) -> dict:
    model = {"path": str(canary), "context": 4096, "parallel": 4, "aliases": ["gpt-4o-mini"]}
    small = {"path": str(canary), "context": 64, "parallel": 2}
    return {
        "models": {"fake": model, "org/small:Q8": small},
        "server": {"max_body_bytes": 8 * 2**20, "drain_s": 5, "sse_keepalive_s": 5, **server},
        "memory": {"device": "cpu", "budget": "2GiB"},
        "scheduler": {"template_process": False},
    }


@pytest.fixture(scope="session")
def server(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without keys."""
    folder = tmp_path_factory.mktemp("http")
    running = Server(settings(canary_path), folder / "server.log", XDG_DATA_HOME=str(folder))
    yield running
    assert running.stop() == 0, running.log


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's own client of it, strict about every object it receives."""
    with openai.OpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="session")
def keyed(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that needs a key, and an admin key for moving models."""
    folder = tmp_path_factory.mktemp("http")
    chosen = settings(canary_path, api_keys=[KEY, "sk-second-9876543210"], admin_keys=[ADMIN])
    running = Server(chosen, folder / "keyed.log", XDG_DATA_HOME=str(folder))
    yield running
    assert running.stop() == 0, running.log
