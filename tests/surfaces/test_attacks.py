"""Hostile requests on the surfaces beside completions: the same bodies, names and floods as there, and their own."""

from __future__ import annotations

import json
import threading
from typing import Any

import psutil
import pytest

from tests.cpu import cpu_s
from tests.http.test_attacks import BODIES, refused, unshaken

__all__ = ["unshaken"]

RESPONSES, MESSAGES, INFILL, COUNT = "/v1/responses", "/v1/messages", "/infill", "/v1/messages/count_tokens"
INPUT_COUNT = "/v1/responses/input_tokens"
USER = [{"role": "user", "content": "hi"}]
BASES: dict[str, dict[str, Any]] = {
    RESPONSES: {"model": "fake", "input": USER},
    INPUT_COUNT: {"model": "fake", "input": USER},
    MESSAGES: {"model": "fake", "max_tokens": 9, "messages": USER},
    COUNT: {"model": "fake", "messages": USER},
    INFILL: {"model": "fake", "input_prefix": "a", "input_suffix": "b"},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_no_request_are_refused(server, body):
    for path in BASES:
        refused(server.post(path, body))


@pytest.mark.parametrize("path", BASES)
def test_names_that_are_no_model_are_not_found(server, path):
    for name in (
        "../../etc/passwd",
        "/abs",
        "%2e%2e%2f",
        "x" * 10_000,
        "a\0b",
        "fake/../fake",
        "a\r\nevil: line\x1b[31m",
    ):
        assert refused(server.post(path, {**BASES[path], "model": name}), 404)["code"] == "model_not_found"
    assert refused(server.post(path, {**BASES[path], "model": 7}))["param"] == "model"
    assert all(line.startswith("20") for line in server.log.splitlines())


@pytest.mark.parametrize("path", BASES)
def test_unknown_and_hostile_fields_are_named_or_refused_never_obeyed(server, path):
    fields = {"n_discard": -1, "id_slot": 3, "n_probs": 9, "a\r\nset-cookie: b": 1}

    answer = server.post(path, {**BASES[path], **fields})

    assert answer.status == 200
    assert answer.headers["x-onecard-ignored"] == "n_discard, id_slot, n_probs, a%0D%0Aset-cookie%3A%20b"
    assert "set-cookie" not in answer.headers


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.mark.parametrize("depth", [100, 250, 3000])
def test_deep_values_are_refused_or_served_never_fatal(server, depth):
    deep = nested(depth)
    bodies = {
        RESPONSES: [
            f'{{"model":"fake","input":[{{"role":"user","content":"x"}},{{"type":"odd","x":{deep}}}]}}',
            f'{{"model":"fake","input":"x","tools":[{{"type":"function","name":"f","parameters":{deep}}}]}}',
            f'{{"model":"fake","input":"x","text":{{"format":{{"type":"json_schema","name":"n","schema":{deep}}}}}}}',
        ],
        MESSAGES: [
            f'{{"model":"fake","max_tokens":9,"messages":[{{"role":"user","content":"x"}}],"metadata":{deep}}}',
            f'{{"model":"fake","max_tokens":9,"messages":[{{"role":"user","content":"x"}}],"tools":[{{"name":"f","input_schema":{deep}}}]}}',
            f'{{"model":"fake","max_tokens":9,"messages":[{{"role":"assistant","content":[{{"type":"tool_use","id":"a","name":"f","input":{deep}}}]}},{{"role":"user","content":"x"}}]}}',
        ],
        INFILL: [f'{{"model":"fake","input_prefix":"a","input_suffix":"b","input_extra":[{{"text":"x","y":{deep}}}]}}'],
    }
    for path, texts in bodies.items():
        for text in texts:
            answer = server.post(path, text.encode())
            assert answer.status in (200, 400), (path, text[:80], answer)


def test_large_bodies_do_not_hold_up_others(server):
    item = '{"type":"message","role":"user","content":[{"type":"input_text","text":"x"}]},'
    block = '{"type":"text","text":"x"},'
    floods = [
        (RESPONSES, f'{{"model":"fake","input":[{item * 100_000}1]}}'),
        (RESPONSES, '{"model":"fake","input":"' + "x" * 7_000_000 + '"}'),
        (MESSAGES, f'{{"model":"fake","max_tokens":9,"messages":[{{"role":"user","content":[{block * 200_000}1]}}]}}'),
        (MESSAGES, json.dumps({**BASES[MESSAGES], "messages": USER * 4096})),
        (INFILL, json.dumps({**BASES[INFILL], "input_extra": [{"text": "x" * 50}] * 100_000})),
    ]
    slowest, done = 0.0, threading.Event()

    def attack() -> None:
        for path, body in floods:
            assert server.post(path, body.encode()).status in (200, 400)
        done.set()

    thread = threading.Thread(target=attack)
    thread.start()
    while thread.is_alive():
        before_s = cpu_s(server.pid)
        assert server.get("/health").status == 200
        slowest = max(slowest, cpu_s(server.pid) - before_s)
    assert done.is_set()
    assert slowest < 0.4


def test_canaries_stay_out_of_logs_metrics_and_errors(server):
    canary = "CANARY77ab"
    bodies: list[tuple[str, dict[str, Any]]] = [
        (RESPONSES, {"input": canary}),
        (RESPONSES, {"input": [{"role": canary, "content": canary}]}),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": canary}]}]}),
        (RESPONSES, {"tools": [{"type": "function", "name": f"{canary} x"}]}),
        (RESPONSES, {"previous_response_id": "resp_x", "instructions": canary}),
        (MESSAGES, {"system": canary, "metadata": {"user_id": canary}}),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"url": canary}}]}]}),
        (INFILL, {"input_prefix": canary, "input_extra": [{"text": canary, "filename": canary}]}),
    ]
    for path, fields in bodies:
        server.post(path, {**BASES[path], **fields}, headers={"x-api-key": canary, "authorization": f"Bearer {canary}"})
    assert canary not in server.log
    assert canary.encode() not in server.get("/metrics").body
    for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
        assert canary not in " ".join(process.cmdline())


def test_ids_that_are_no_response_are_not_found(server):
    for name in ("resp_x", "..%2f..%2fetc", "%00", "x" * 5000, "a%0d%0aevil"):
        refused(server.get(f"{RESPONSES}/{name}"), 404)
        refused(server.get(f"{RESPONSES}/{name}/input_items"), 404)
        refused(server.call("DELETE", f"{RESPONSES}/{name}"), 404)


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES, INFILL])
def test_a_client_that_hangs_up_ends_its_job(server, path):
    text: dict[str, dict[str, Any]] = {
        RESPONSES: {"input": "!slow 20 500"},
        MESSAGES: {"messages": [{"role": "user", "content": "!slow 20 500"}]},
    }
    body = json.dumps(
        {**BASES[path], **text.get(path, {"input_prefix": "!slow 20 500 "}), "stream": True, "max_tokens": 999}
    )
    connection = server.connect()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body.encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.model()["busy"]
    connection.close()
    server.wait_idle(2)
