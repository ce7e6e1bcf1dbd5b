"""How requests end early: clients hang up or stop reading, workers die, loads take long, servers go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time

import pytest

from tests.e2e.server import until
from tests.http.conftest import Server, settings
from tests.http.test_attacks import refused
from tests.present import present

CHAT = "/v1/chat/completions"


def read_until(connection, *marks: bytes, within_s: float = 10) -> bytes:
    """What the server sends until one of the marks, or until it closes."""
    connection.settimeout(within_s)
    data = b""
    while not any(mark in data for mark in marks):
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return data


def send_whole(server: Server, text: str, **fields):
    """A connection on which a request for a whole answer was sent."""
    return server.open_stream(text, **{"stream": False, **fields})


def logged_499(server: Server) -> int:
    return server.log.count(" status=499 ")


@pytest.fixture
def own_server(canary_path, tmp_path):
    """Starts servers that one test breaks or stops by itself."""
    started: list[Server] = []

    def start(env: dict | None = None, **section) -> Server:
        running = Server(settings(canary_path, **section), tmp_path / f"server{len(started)}.log", **(env or {}))
        started.append(running)
        return running

    yield start
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
        present(running.process.stdout).close()


# --- clients that hang up ------------------------------------------------------------------------------------------


def test_hanging_up_in_a_stream_frees_the_room(server):
    server.chat()
    before = logged_499(server)
    connection = server.open_stream("!slow 20 500")
    read_until(connection, b'"content":"0')
    assert server.model()["busy"] == 1
    connection.close()
    server.wait_idle(2)
    until(lambda: logged_499(server) == before + 1)


def test_nothing_but_the_step_at_hand_is_computed_for_clients_that_have_hung_up(server):
    """Steps of 150 ms: what comes for a client that has left was at hand when it left."""
    server.chat()
    before, received = generated(server), 0
    for last_word in (0, 1, 4, 2):
        connection = server.open_stream("!slow 150 500")
        read_until(connection, f'"content":"{last_word}'.encode(), f'"content":" {last_word}'.encode())
        connection.close()
        received += last_word + 1
        server.wait_idle(2)

    assert 0 <= generated(server) - before - received <= 4


def generated(server: Server) -> int:
    """Tokens that the model has said, read or not."""
    page = server.get("/metrics").body.decode()
    found = re.search(r'^onecard_generation_tokens_total\{model_name="fake"\} (\S+)$', page, re.MULTILINE)
    return int(float(present(found)[1]))


def test_hanging_up_while_waiting_for_a_whole_answer_frees_the_room(server):
    before = logged_499(server)
    connection = send_whole(server, "!slow 20 500")
    until(lambda: server.model()["busy"] == 1)
    connection.close()
    server.wait_idle(2)
    until(lambda: logged_499(server) == before + 1)


@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_in_the_queue_takes_the_request_out(server, stream):
    server.chat()
    busy = [server.open_stream("!slow 20 500") for _ in range(4)]
    until(lambda: server.model()["busy"] == 4)
    waiting = server.open_stream("late", stream=stream)
    until(lambda: server.model()["waiting"] == 1)
    waiting.close()
    until(lambda: server.model()["waiting"] == 0, 2)
    for connection in busy:
        connection.close()
    server.wait_idle(2)
    assert server.chat().status == 200


def test_hanging_up_before_the_body_is_there_is_no_fault_of_ours(server):
    connection = server.connect()
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: 100\r\n\r\n{"
    )
    before = logged_499(server)
    connection.close()
    until(lambda: logged_499(server) == before + 1)
    assert "request_failed" not in server.log


def test_hanging_up_with_several_prompts_ends_all_of_them(server):
    body = {"model": "fake", "prompt": ["!slow 20 500"] * 8, "stream": True, "max_tokens": 500}
    data = json.dumps(body).encode()
    connection = server.connect()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(data), data)
    )
    until(lambda: server.model()["busy"] == 4 and server.model()["waiting"] == 4)
    connection.close()
    server.wait_idle(2)


def test_many_clients_that_hang_up_at_random_leave_nothing_behind(server):
    threads = []
    for i in range(24):

        def visit(i=i) -> None:
            connection = server.open_stream("!slow 5 100", stream=i % 2 == 0)
            if i % 3:
                connection.settimeout(0.02 * i)
                with contextlib.suppress(TimeoutError):
                    connection.recv(200)
            connection.close()

        threads.append(threading.Thread(target=visit))
        threads[-1].start()
    for thread in threads:
        thread.join()
    server.wait_idle(5)
    assert server.chat().json()["choices"][0]["message"]["content"] == "echo: control"


# --- workers that die ----------------------------------------------------------------------------------------------


def test_a_killed_worker_ends_the_stream_with_an_error_and_the_next_request_is_served(own_server):
    server = own_server()
    connection = server.open_stream("!slow 20 500")
    read_until(connection, b'"content":"0')
    os.kill(server.model()["pid"], signal.SIGKILL)
    data = read_until(connection, b"0\r\n\r\n")
    assert b'data: {"error":{"message":' in data
    assert b'"code":"worker_crashed"' in data
    assert b"[DONE]" not in data
    assert b'"finish_reason":"stop"' not in data
    connection.close()
    assert server.chat().json()["choices"][0]["message"]["content"] == "echo: control"
    assert server.stop() == 0


def test_an_engine_that_raises_tells_nothing_of_the_prompt(own_server):
    server = own_server()
    answer = server.chat("!raise CANARYx")
    error = refused_5xx(answer)
    assert "secret" not in error["message"]
    assert "CANARYx" not in server.log + answer.body.decode()
    assert "Traceback" not in server.log
    assert server.chat().status == 200


def refused_5xx(answer) -> dict:
    assert answer.status == 500
    assert answer.headers["x-request-id"]
    return answer.error


# --- loads ---------------------------------------------------------------------------------------------------------


def test_a_slow_load_is_bridged_with_comments(own_server):
    server = own_server({"ONECARD_TEST_LOAD": "slow 3"})
    begin = time.monotonic()
    connection = server.open_stream("hello")
    data = read_until(connection, b": loading ")
    assert time.monotonic() - begin < 3
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"text/event-stream" in data
    data += read_until(connection, b"[DONE]")
    assert re.search(rb": loading fake \d+% estimate_s=\d+\n\n", data)
    told = re.search(r"load_progress model=fake percent=(\d+) left_s=([\d.]+)", server.log)
    assert told is not None, server.log
    assert int(told[1]) in range(10, 100, 10)  # tenths, as the load tells them
    assert float(told[2]) >= 0
    assert b'" hello"' in data or b'"echo: hello"' in data
    connection.close()


def test_a_whole_answer_waits_for_the_load_and_says_how_long_it_took(own_server):
    server = own_server({"ONECARD_TEST_LOAD": "slow 1"})
    answer = server.chat()
    assert answer.status == 200
    assert int(answer.headers["x-onecard-load-ms"]) >= 900
    assert int(answer.headers["x-onecard-queue-ms"]) >= 900
    assert "x-onecard-load-ms" not in server.chat().headers


def test_a_quick_failure_to_load_is_a_status_even_for_a_stream(own_server):
    server = own_server({"ONECARD_TEST_LOAD": "fail it is no model"})
    for stream in (True, False):
        answer = server.chat(stream=stream)
        assert answer.status == 503
        assert answer.error["code"] in ("load_failed", "quarantined")
        assert "it is no model" in answer.error["message"]


def test_a_late_failure_to_load_is_an_error_in_the_stream(own_server):
    server = own_server({"ONECARD_TEST_LOAD": "slow 20"})
    connection = server.open_stream("hello", model="org/small:Q8")
    read_until(connection, b": loading ")
    os.kill(worker_pid(server), signal.SIGKILL)
    data = read_until(connection, b"0\r\n\r\n", b"[DONE]")
    assert b'data: {"error":{' in data
    assert b"[DONE]" not in data
    connection.close()


def worker_pid(server: Server) -> int:
    import psutil

    return psutil.Process(server.pid).children()[0].pid


def test_hanging_up_during_a_load_forgets_the_request(own_server):
    server = own_server({"ONECARD_TEST_LOAD": "slow 1.5"})
    connection = server.open_stream("hello", stream=False)
    until(lambda: server.model()["waiting"] == 1)
    connection.close()
    until(lambda: server.model()["waiting"] == 0, 2)


def test_a_model_is_loaded_and_unloaded_by_hand_and_reading_does_neither(own_server):
    server = own_server()
    for path in ("/health", "/ready", "/v1/models", "/v1/models/fake", "/v1/status", "/metrics"):
        assert server.get(path).status == 200
    assert server.model()["state"] == "unloaded"
    assert server.post("/v1/models/gpt-4o-mini/load", {}).json()["state"] == "ready"
    assert "tools" in server.get("/v1/models/fake").json()["capabilities"]
    assert server.post("/v1/models/fake/load", {}).status == 200
    assert server.post("/v1/models/fake/unload", {}).json()["state"] == "unloaded"
    assert server.post("/v1/models/org/small:Q8/load", {}).json()["id"] == "org/small:Q8"


# --- slow readers --------------------------------------------------------------------------------------------------


def test_a_queue_that_is_full_is_429_with_a_time_to_come_back(own_server):
    server = own_server(max_queue=1)
    server.chat()
    busy = [server.open_stream("!slow 20 500") for _ in range(5)]
    until(lambda: server.model()["waiting"] == 1)
    answer = server.chat()
    assert refused(answer, 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    for connection in busy:
        connection.close()


def test_more_prompts_than_may_ever_wait_are_400_since_retrying_would_not_help(own_server):
    server = own_server(max_queue=3)
    body = {"model": "fake", "max_tokens": 1}
    answer = server.post("/v1/completions", {**body, "prompt": ["a"] * 4})
    assert refused(answer, 400)["param"] == "prompt"
    assert server.post("/v1/completions", {**body, "prompt": ["a"] * 3}).status == 200


# --- servers that go -----------------------------------------------------------------------------------------------


def test_sigterm_lets_streams_finish_and_takes_nothing_new(own_server):
    server = own_server()
    server.chat()
    connection = server.open_stream("!slow 20 60")
    read_until(connection, b'"content":"0')
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.get("/ready").status == 503)
    late = server.chat()
    assert refused(late, 503)["code"] == "draining"
    assert late.headers["connection"] == "close"
    assert server.get("/health").status == 200
    data = read_until(connection, b"[DONE]")
    assert b" 59" in data
    assert b"data: [DONE]" in data
    connection.close()
    assert server.process.wait(10) == 0


def test_streams_that_outlast_the_grace_end_with_an_error(own_server):
    server = own_server(drain_s=0.5)
    server.chat()
    connection = server.open_stream("!slow 20 500")
    read_until(connection, b'"content":"0')
    server.process.send_signal(signal.SIGTERM)
    data = read_until(connection, b"0\r\n\r\n")
    assert b'"code":"draining"' in data
    assert b"[DONE]" not in data
    connection.close()
    assert server.process.wait(10) == 0


def test_a_second_sigterm_ends_at_once(own_server):
    server = own_server(drain_s=20)
    server.chat()
    connection = server.open_stream("!slow 20 500")
    read_until(connection, b'"content":"0')
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.get("/ready").status == 503)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(2) != 0
    connection.close()
