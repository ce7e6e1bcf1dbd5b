"""Wrong, huge and hostile requests: each gets its answer, and nothing else changes.

After every one: a control request is answered as ever, server and worker are the same processes, no answer is 422 or
500, the error has OpenAI's shape, and the answer carries an id.
"""

from __future__ import annotations

import json
import threading
from typing import Any

import psutil
import pytest

from tests.cpu import cpu_s
from tests.http.conftest import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def unshaken(server):
    """What must hold around every attack."""
    assert server.chat().json()["choices"][0]["message"]["content"] == "echo: control"
    worker = server.model()["pid"]
    yield
    assert server.get("/health").status == 200
    assert server.chat().json()["choices"][0]["message"]["content"] == "echo: control"
    assert server.model()["pid"] == worker
    assert server.process.poll() is None


def refused(answer, status: int | tuple[int, ...] = 400) -> dict:
    assert answer.status in ((status,) if isinstance(status, int) else status), answer
    assert answer.status not in (422, 500)
    assert answer.headers["x-request-id"]
    beside = {"type", "request_id"} if isinstance(answer.json()["error"], dict) else {"type", "param", "code"}
    assert answer.json().keys() - beside == {"error"}  # two are in Anthropic's bodies, three in Ollama's
    assert answer.error.keys() == {"message", "type", "param", "code"}
    assert len(answer.body) < 2000
    return answer.error


WRONG_MESSAGES: list[tuple[Any, str]] = [
    (None, "messages"),
    ("str", "messages"),
    ([], "messages"),
    ([123], "messages[0]"),
    ([{}], "messages[0].role"),
    ([{"role": 123}], "messages[0].role"),
    ([{"role": "user", "content": 123}], "messages[0].content"),
]
WRONG_TOKENS: list[list[Any]] = [[-1], [256], [1.5], [1, [2]], [], [[]]]
ROWS = {
    "A01 n": [(CHAT, {"n": n}, "n", "integer_above_max_value") for n in (129, 10**9, 2**63)],
    "A02 best_of": [(TEXT, {"best_of": 21}, "best_of", None), (TEXT, {"n": 2, "best_of": 1}, "best_of", None)],
    "A02 product": [(TEXT, {"prompt": ["x"] * 2048, "n": 128}, "prompt", None)],
    "A03 max_tokens": [
        *[(CHAT, {"max_tokens": n}, "max_tokens", "integer_below_min_value") for n in (0, -1, -15335)],
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens", "integer_below_min_value"),
        (TEXT, {"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    ],
    "A04 large": [(CHAT, {"max_tokens": n}, "max_tokens", "integer_above_max_value") for n in (2**31, 2**63, 10**30)],
    "A05 temperature": [
        (CHAT, {"temperature": -0.01}, "temperature", "decimal_below_min_value"),
        (CHAT, {"temperature": 2.01}, "temperature", "decimal_above_max_value"),
        (CHAT, {"temperature": "0.5"}, "temperature", "invalid_type"),
        (CHAT, {"temperature": True}, "temperature", "invalid_type"),
    ],
    "A06 others": [
        (CHAT, {name: value}, name, None)
        for name, value in [
            ("top_p", 1.1),
            ("top_p", -1),
            ("presence_penalty", 2.01),
            ("frequency_penalty", -2.01),
            ("top_k", -5),
            ("repetition_penalty", 0),
            ("min_p", 2),
        ]
    ],
    "A08 seed": [(CHAT, {"seed": seed}, "seed", None) for seed in (-(2**63) - 1, 2**64, 1.5)],
    "A09 logit_bias": [
        (CHAT, {"logit_bias": bias}, "logit_bias", None)
        for bias in ({"foo": 1}, {"-1": 1}, {"1": 101}, {str(i): 1 for i in range(200_000)})
    ],
    "A10 logprobs": [
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
        (CHAT, {"top_logprobs": 2}, "top_logprobs", None),
        (TEXT, {"logprobs": 6}, "logprobs", None),
    ],
    "A11 stop": [
        (CHAT, {"stop": ["a"] * 65}, "stop", None),
        (CHAT, {"stop": ""}, "stop[0]", None),
        (CHAT, {"stop": "x" * 2**20}, "stop[0]", None),
        (CHAT, {"stop": ["x"] * 10_000}, "stop", None),
    ],
    "A14 messages": [(CHAT, {"messages": value}, param, None) for value, param in WRONG_MESSAGES],
    "A35 too long by length": [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2**20}]}, "messages", "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 2**20}], "stream": True}, "messages", None),
        (TEXT, {"prompt": "x" * 2**20, "model": "org/small:Q8"}, "prompt", "context_length_exceeded"),
    ],
    "A35 too long by tokens": [
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}, "messages", "context_length_exceeded"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}], "stream": True}, "messages", None),
        (TEXT, {"prompt": "x" * 5000}, "prompt", "context_length_exceeded"),
    ],
    "A37 empty": [(CHAT, {"messages": []}, "messages", None), (CHAT, {"messages": [{"role": "user"}]}, None, None)],
    "A38 tokens": [(TEXT, {"prompt": p}, "prompt", None) for p in WRONG_TOKENS],
    "A47 model type": [(CHAT, {"model": 7}, "model", None), (CHAT, {"model": None}, "model", None)],
}


REFUSED_WITHIN_S = 0.05
LARGE_REFUSED_WITHIN_S = 0.5
"""For bodies of megabytes."""


def computed_s(server: Server) -> float:
    """Processor time of the server and its worker, which others that run beside them do not change."""
    return sum(
        cpu_s(pid) for pid in (server.pid, *(p.pid for p in psutil.Process(server.pid).children(recursive=True)))
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_wrong_values_are_refused_with_their_name(server, row):
    for path, fields, param, code in row:
        base = {"model": "fake", "messages": USER} if path == CHAT else {"model": "fake", "prompt": "x"}
        body = json.dumps({**base, **fields}).encode()
        bound_s = REFUSED_WITHIN_S if len(body) < 2**16 else LARGE_REFUSED_WITHIN_S
        taken: list[float] = []
        while len(taken) < 3 and min(taken, default=bound_s) >= bound_s:  # what takes long takes long each time
            before_s = computed_s(server)
            error = refused(server.post(path, body))
            taken.append(computed_s(server) - before_s)
        assert min(taken) < bound_s, taken
        assert param is None or error["param"] == param
        assert code is None or error["code"] == code


BODIES = {
    "A04 5000 digits": b'{"model":"fake","messages":[],"max_tokens":' + b"9" * 5000 + b"}",
    "A05 NaN": b'{"model":"fake","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
    "A05 1e999": b'{"model":"fake","messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    "A15 empty": b"",
    "A15 null": b"null",
    "A15 array": b"[]",
    "A15 number": b"42",
    "A15 string": b'"x"',
    "A15 truncated": b'{"model":"fake","mess',
    "A15 two": b"{}{}",
    "A15 mark": b"\xef\xbb\xbf{}",
    "A15 utf-16": '{"model":"fake"}'.encode("utf-16"),
    "A15 duplicate": b'{"model":"fake","model":"fake","messages":[{"role":"user","content":"x"}]}',
    **{f"A16 {n} deep": b'{"model":"fake","metadata":' + b"[" * n + b"]" * n + b"}" for n in (250, 3000, 100_000)},
    "A16 deep messages": b'{"model":"fake","messages":' + b'[{"a":' * 2000 + b"1" + b"}]" * 2000 + b"}",
    "A18 a million messages": b'{"model":"fake","messages":[' + b'{"role":"user","content":"x"},' * 200_000 + b"1]}",
    "A18 many tools": b'{"model":"fake","tools":[' + b'{"type":"function"},' * 100_000 + b"1]}",
    "A18 many parts": b'{"model":"fake","messages":[{"role":"user","content":['
    + b'{"type":"text","text":"x"},' * 100_000
    + b"1]}]}",
    "A19 invalid utf-8": b'{"model":"fake","messages":[{"role":"user","content":"\xff\xfe"}]}',
    **{
        f"A19 surrogate {name}": b'{"model":"fake","messages":[{"role":"user","content":"x"}],"'
        + name.encode()
        + b'":"\\ud800"}'
        for name in ("model2", "user", "stop")
    },
    "A19 surrogate model": b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}]}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_bodies_that_are_no_request_are_refused(server, body):
    for path in (CHAT, TEXT):
        refused(server.post(path, body))


ACCEPTED = {
    "A03 zero text tokens": (TEXT, {"max_tokens": 0}),
    "A04 int32": (CHAT, {"max_tokens": 2**31 - 1}),
    "A08 seeds": (CHAT, {"seed": -9007199254740991}),
    "A08 minus one": (CHAT, {"seed": -1}),
    "A09 in range": (CHAT, {"logit_bias": {"5": 100, "6": -100}}),
    "A12 others' fields": (
        CHAT,
        {"n_discard": -1, "n_keep": 5, "id_slot": 3, "n_probs": 9, "samplers": [], "cache_prompt": False},
    ),
    "A14 two assistants": (
        CHAT,
        {"messages": [*USER, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}, *USER]},
    ),
    "A20 control characters": (
        CHAT,
        {"messages": [{"role": "user", "content": "a\0\x1b[31m\r\n\u202eb"}], "user": "u\0\r\nx: y"},
    ),
    "A37 empty content": (CHAT, {"messages": [{"role": "user", "content": ""}]}),
    "A37 empty prompt": (TEXT, {"prompt": ""}),
}


@pytest.mark.parametrize(("path", "fields"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_odd_but_right_values_are_served(server, path, fields):
    base = {"model": "fake", "messages": USER} if path == CHAT else {"model": "fake", "prompt": "x"}
    answer = server.post(path, {**base, **fields})
    assert answer.status == 200, answer
    if "n_keep" in fields:
        assert answer.headers["x-onecard-ignored"] == "n_discard, n_keep, id_slot, n_probs, samplers"


def test_a20_text_cannot_break_out_of_a_header_or_a_log_line(server):
    assert server.chat("x", **{"a\r\nset-cookie: b": 1}).headers.get("set-cookie") is None
    refused(server.post(CHAT, {"model": "a\r\nevil: line\x1b[31m", "messages": USER}), 404)
    assert all(line.startswith("20") for line in server.log.splitlines())
    assert "\x1b" not in server.log


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/abs", "%2e%2e%2f", "x" * 10_000, "a\0b", "", "fake/../fake", "FAKE"]
)
def test_a47_names_that_are_no_model_are_not_found(server, model):
    for path, fields in ((CHAT, {"messages": USER}), (TEXT, {"prompt": "x"}), ("/tokenize", {"content": "x"})):
        error = refused(server.post(path, {"model": model, **fields}), 404)
        assert error["code"] == "model_not_found"


def test_a47_paths_that_are_no_model_are_not_found(server):
    for path in ("/v1/models/..%2f..%2fetc", "/v1/models/%00", "/v1/models/", "/v1/models/x/y/z", "/v1/models/fake%0a"):
        refused(server.get(path), 404)
    for path in ("/v1/models/nope/load", "/v1/models/../fake/unload", "/v1/models//load", "/v1/models/fake/load%0a"):
        refused(server.post(path, {}), 404)


def test_a17_a_body_that_says_it_is_too_large_is_not_read(server):
    memory = psutil.Process(server.pid)
    before = memory.memory_info().rss
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    data = server.raw((head + f"content-length: {2**30}\r\n\r\n").encode() + b"{" * 100_000)
    assert data.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in data
    assert memory.memory_info().rss - before < 20 * 2**20


def test_a17_a_body_a_little_too_large_gets_its_answer(server):
    refused(server.post(CHAT, b'{"model": "' + b"x" * (9 * 2**20) + b'"}'), 413)


def test_a17_a_chunked_body_without_end_is_cut(server):
    memory = psutil.Process(server.pid)
    before = memory.memory_info().rss
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with server.connect() as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            while sent < 256 * 2**20:
                connection.sendall(chunk)
                sent += 0x10000
        except OSError:
            pass
    assert sent < 64 * 2**20
    assert memory.memory_info().rss - before < 40 * 2**20


def test_large_bodies_do_not_hold_up_others(server):
    """A18: while bodies of very many values are refused, `/health` keeps answering."""
    bodies = {name: BODIES[name] for name in BODIES if name.startswith("A18")}
    bodies["A18 one string"] = b'{"model":"fake","messages":[{"role":"user","content":"%b"}]}' % (b"[1,2]," * 1_000_000)
    lags = {name: min(slowest_beside(server, body) for _ in range(3)) for name, body in bodies.items()}
    assert max(lags.values()) < 0.1, lags


def slowest_beside(server, body: bytes) -> float:
    """The most that the server computed before it answered `/health`, while a body was being refused, in seconds."""
    attack = threading.Thread(target=lambda: refused(server.post(CHAT, body)))
    attack.start()
    slowest = 0.0
    while attack.is_alive():
        before_s = cpu_s(server.pid)
        assert server.get("/health").status == 200
        slowest = max(slowest, cpu_s(server.pid) - before_s)
    attack.join()
    return slowest


def test_a64_request_ids_are_kept_or_replaced(server):
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("x" * 10_000, "a b", 'a"b', ""):
        answer = server.get("/health", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"].startswith("req_")


def test_a64_unknown_names_make_no_series(server):
    before = server.get("/metrics").body.count(b"\n")
    for i in range(50):
        server.post(CHAT, {"model": f"random-{i}", "messages": USER})
    after = server.get("/metrics").body
    assert after.count(b"\n") <= before + 2
    assert b"random-" not in after


def test_a65_canaries_stay_out_of_logs_metrics_and_errors(server):
    canary = "CANARY5f1e"
    bodies = [
        {"model": "fake", "messages": [{"role": "user", "content": f"{canary}"}]},
        {"model": "fake", "messages": [{"role": "user", "content": f"!raise {canary}"}], "n": canary},
        {"model": "fake", "messages": [{"role": canary, "content": "x"}]},
        {"model": "fake", "messages": [{"role": "user", "content": [{"type": canary, "text": canary}]}]},
        {
            "model": "fake",
            "messages": USER,
            "tools": [{"type": "function", "function": {"name": f"{canary} {canary}"}}],
        },
    ]
    for body in bodies:
        server.post(CHAT, body, headers={"authorization": f"Bearer {canary}"})
        server.get(f"/v1/models?key={canary}")
    server.post(CHAT, f'{{"messages": "{canary}", "messages": 1}}'.encode())
    assert canary not in server.log
    assert canary.encode() not in server.get("/metrics").body
    for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]:
        assert canary not in " ".join(process.cmdline())
        assert canary not in json.dumps(process.environ())
