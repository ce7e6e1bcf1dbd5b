"""What goes wrong stays with who it concerns: killed workers, clients that hang up, signals, broken files."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.server import Server, serving, until
from tests.models import broken, broken_folders, canary_p

pytestmark = pytest.mark.engine

LONG = 1500


def canary(text: str) -> Any:
    return [{"role": "user", "content": text}]


def answer(client: openai.OpenAI, model: str = "canary", text: str = "k") -> str | None:
    reply = client.chat.completions.create(model=model, messages=canary(text), max_tokens=16, temperature=0)
    return reply.choices[0].message.content


GOLDEN = canary_p.expected_text("k", 16)


def worker_of(server: Server, client: openai.OpenAI, model: str) -> psutil.Process:
    """The process that serves `model`, found by unloading it: the one that goes."""
    answer(client, model)
    before = {process.pid: process for process in server.workers()}
    client.post(f"/models/{model}/unload", cast_to=object, body={})
    until(lambda: len(server.workers()) < len(before), within_s=10, what="the worker to go")
    rest = {process.pid for process in server.workers()}
    answer(client, model)
    (new,) = [process for process in server.workers() if process.pid not in rest]
    return new


def test_a_killed_worker_ends_its_streams_with_an_error_and_is_replaced(server: Server, client: openai.OpenAI) -> None:
    worker = worker_of(server, client, "canary")
    stream = client.chat.completions.create(model="canary", messages=canary("a"), max_tokens=LONG, stream=True)
    finish: list[str] = []

    def read_and_kill() -> None:
        for chunk in stream:
            finish.extend(choice.finish_reason for choice in chunk.choices if choice.finish_reason)
            if psutil.pid_exists(worker.pid):
                worker.send_signal(signal.SIGKILL)

    with pytest.raises(openai.APIError) as caught:
        read_and_kill()

    assert caught.value.code == "worker_crashed"
    assert finish == []
    assert answer(client) == GOLDEN
    assert server.process.poll() is None


def test_a_stopped_worker_is_noticed_and_replaced(server: Server, client: openai.OpenAI) -> None:
    worker = worker_of(server, client, "canary")
    worker.send_signal(signal.SIGSTOP)

    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="canary", messages=canary("a"), max_tokens=LONG)

    assert caught.value.code in {"worker_hung", "worker_crashed"}
    assert answer(client) == GOLDEN


def raw_request(server: Server, body: dict[str, Any]) -> socket.socket:
    host, port = server.url.removeprefix("http://").rsplit(":", 1)
    payload = json.dumps(body).encode()
    sock = socket.create_connection((host, int(port)), timeout=20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return sock


def running(server: Server) -> float:
    return server.metric("onecard_num_requests_running", model_name="canary")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_room(server: Server, client: openai.OpenAI, *, stream: bool) -> None:
    answer(client)
    body = {"model": "canary", "messages": canary("a"), "max_tokens": LONG, "n": 4, "stream": stream}
    before = server.metric("onecard_generation_tokens_total", model_name="canary")
    sock = raw_request(server, body)
    until(lambda: running(server) == 1, within_s=10, what="the request to run")

    sock.close()

    until(lambda: running(server) == 0, within_s=1, what="the room to be free")
    assert server.metric("onecard_generation_tokens_total", model_name="canary") - before < 4 * LONG
    assert server.metric("onecard_request_success_total", model_name="canary", finished_reason="abort") >= 1
    assert answer(client) == GOLDEN


def test_a_client_that_hangs_up_in_the_queue_leaves_no_trace(server: Server, client: openai.OpenAI) -> None:
    answer(client)
    hog = raw_request(server, {"model": "canary", "messages": canary("a"), "max_tokens": LONG, "n": 4, "stream": True})
    until(lambda: running(server) == 1, within_s=10, what="the hog to run")
    queued = raw_request(server, {"model": "canary", "messages": canary("b"), "max_tokens": 8, "n": 4})
    until(lambda: server.metric("onecard_num_requests_waiting", model_name="canary") == 1, within_s=5, what="the queue")

    queued.close()

    until(lambda: server.metric("onecard_num_requests_waiting", model_name="canary") == 0, within_s=1, what="the queue")
    hog.close()
    until(lambda: running(server) == 0, within_s=2, what="the room to be free")


@pytest.fixture
def own_server(tmp_path: Path, canary_model: Path) -> Any:
    with serving(tmp_path, models={"canary": canary_model}, flags=("--context", "2048")) as server:
        yield server


def test_sigterm_lets_streams_finish_and_takes_no_new_work(own_server: Server) -> None:
    client = own_server.client()
    stream = iter(client.chat.completions.create(model="canary", messages=canary("a"), max_tokens=LONG, stream=True))
    text = [next(stream).choices[0].delta.content or "" for _ in range(2)]
    workers = own_server.workers()

    own_server.process.send_signal(signal.SIGTERM)
    until(lambda: "draining" in own_server.log.read_text(), within_s=5, what="the drain to begin")
    with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
        answer(client)
    text += [chunk.choices[0].delta.content or "" for chunk in stream]

    assert "".join(text) == canary_p.expected_text("a", LONG)
    assert own_server.process.wait(20) == 0
    assert not any(psutil.pid_exists(worker.pid) for worker in workers)


def test_a_second_signal_ends_the_server_now(own_server: Server) -> None:
    client = own_server.client()
    stream = client.chat.completions.create(model="canary", messages=canary("a"), max_tokens=LONG, n=2, stream=True)
    next(iter(stream))
    workers = own_server.workers()

    own_server.process.send_signal(signal.SIGTERM)
    until(lambda: "draining" in own_server.log.read_text(), within_s=5, what="the drain to begin")
    own_server.process.send_signal(signal.SIGTERM)

    own_server.process.wait(2)
    until(lambda: not any(psutil.pid_exists(w.pid) for w in workers), within_s=5, what="the workers to go")


def test_a_worker_sees_no_secret_and_does_not_outlive_a_killed_server(tmp_path: Path, canary_model: Path) -> None:
    secret = "canary-key-0123456789"
    env = {"ONECARD_SERVER__API_KEYS": secret, "HF_TOKEN": secret, "OPENAI_API_KEY": secret}
    with serving(tmp_path, models={"canary": canary_model}, env=env) as server:
        client = server.client().with_options(api_key=secret)
        assert answer(client) == GOLDEN
        workers = server.workers()
        assert workers
        for worker in workers:
            assert secret not in Path(f"/proc/{worker.pid}/environ").read_text()
            assert secret not in " ".join(worker.cmdline())

        server.process.send_signal(signal.SIGKILL)

        until(lambda: not any(psutil.pid_exists(w.pid) for w in workers), within_s=5, what="the workers to go")
        assert secret not in server.log.read_text()


@pytest.fixture
def broken_models(backend: str, tmp_path: Path) -> dict[str, Path]:
    """Every broken model that this backend could be given, by name."""
    if backend == "bnb":
        return {case: broken_folders.make(case, tmp_path / case) for case in broken_folders.TABLE}
    files = {entry.name: tmp_path / f"{entry.name}.gguf" for entry in broken.TABLE}
    for entry in broken.TABLE:
        files[entry.name].write_bytes(entry.make())
    return files


def test_broken_models_fail_with_a_sentence_while_others_are_served(
    tmp_path: Path, canary_model: Path, broken_models: dict[str, Path]
) -> None:
    models = {"canary": canary_model, **{f"bad/{name}": path for name, path in broken_models.items()}}
    with serving(tmp_path, models=models, flags=("--context", "512")) as server:
        client = server.client()
        assert answer(client) == GOLDEN
        workers = {worker.pid for worker in server.workers()}
        results: dict[str, Any] = {}
        bystander = threading.Thread(target=lambda: results.update(text=[answer(client) for _ in range(20)]))
        bystander.start()
        for name in broken_models:
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model=f"bad/{name}", messages=canary("a"), max_tokens=4, timeout=10)
            assert caught.value.status_code in {400, 500, 503}, name
            message = str(caught.value.body)
            assert os.fspath(tmp_path) not in message, name
            assert "Traceback" not in message, name
        bystander.join()
        assert results["text"] == [GOLDEN] * 20
        assert workers <= {worker.pid for worker in server.workers()}
        assert "Traceback" not in server.log.read_text()
