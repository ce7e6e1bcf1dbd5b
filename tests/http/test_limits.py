"""The limits of named keys under attack: fifty clients at once, slow bodies, cut streams, and OpenAI's own retries."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import until
from tests.http.conftest import Answer, Server, settings

BOSS = {"x-api-key": "sk-boss"}
CLIENTS = 50
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def limited(canary_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("limits")
    config = settings(canary_path, admin_keys=["sk-boss"], max_queue=200)
    config["models"]["fake"]["parallel"] = 16
    limits: dict[str, dict[str, Any]] = {
        "rpm": {"requests_per_minute": 20},
        "tpm": {"tokens_per_minute": 600},
        "slow": {"tokens_per_minute": 600},
        "four": {"max_concurrent": 4},
        "again": {"tokens_per_minute": 3000},
        "all": {},
    }
    config["keys"] = {name: {"key": f"sk-{name}", **its} for name, its in limits.items()}
    running = Server(config, folder / "server.log", XDG_DATA_HOME=str(folder))
    assert running.post(CHAT, body("hi"), headers=BOSS).status == 200
    yield running
    assert running.stop() == 0, running.log


def body(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


def at_once(ask: Callable[[int], Answer]) -> list[Answer]:
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(ask, range(CLIENTS)))


def used(server: Server, name: str) -> dict[str, int]:
    """What the usage book has of a key."""
    rows = server.get("/v1/usage", headers={"x-api-key": f"sk-{name}"}).json()["data"]
    return {kind: sum(row[kind] for row in rows) for kind in ("jobs", "prompt_tokens", "completion_tokens")}


def counted(server: Server, name: str) -> dict[str, float]:
    """The same of the metrics, by what they count."""
    found = {}
    for line in server.get("/metrics", headers=BOSS).body.decode().splitlines():
        if line.startswith("onecard_key_") and f'key_name="{name}"' in line:
            labels, _, value = line.rpartition(" ")
            found[labels.split("{")[0] + labels.partition(f'"{name}"')[2]] = float(value)
    return found


def test_of_fifty_requests_at_once_a_minute_s_are_answered_and_the_others_told_when(limited: Server):
    began = time.monotonic()
    answers = at_once(lambda _: limited.post(CHAT, body("hi"), headers={"x-api-key": "sk-rpm"}))
    refilled = (time.monotonic() - began) * 20 / 60

    n_by = Counter(answer.status for answer in answers)
    assert set(n_by) == {200, 429}
    assert 20 <= n_by[200] <= 20 + refilled
    assert all(1 <= int(a.headers["retry-after"]) <= 3 for a in answers if a.status == 429)
    assert all(a.headers["x-ratelimit-limit-requests"] == "20" for a in answers)
    told = counted(limited, "rpm")
    assert told["onecard_key_requests_total}"] == n_by[200] == used(limited, "rpm")["jobs"]
    assert told['onecard_key_refused_requests_total,reason="requests"}'] == n_by[429]


def test_of_fifty_long_requests_at_once_as_many_are_answered_as_have_tokens(limited: Server):
    began = time.monotonic()
    wished = body("x" * 160, max_tokens=160)  # reserved as 40 + 160 tokens, and the engine counts 160 + 2
    answers = at_once(lambda _: limited.post(CHAT, wished, headers={"x-api-key": "sk-tpm"}))
    refilled = (time.monotonic() - began) * 10

    n_ok = sum(answer.status == 200 for answer in answers)
    assert 3 <= n_ok <= 4 + refilled / 160
    assert {a.error["type"] for a in answers if a.status == 429} == {"tokens"}
    assert sum(a.json()["usage"]["total_tokens"] for a in answers if a.status == 200) == 162 * n_ok
    spent = used(limited, "tpm")
    assert (spent["jobs"], spent["prompt_tokens"], spent["completion_tokens"]) == (n_ok, 160 * n_ok, 2 * n_ok)


def test_requests_whose_bodies_come_late_do_not_get_tokens_that_others_took(limited: Server):
    data = json.dumps(body("x" * 800)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-api-key: sk-slow\r\n"
    opened = [limited.connect() for _ in range(CLIENTS)]
    for connection in opened:
        connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode())
    until(lambda: counted(limited, "slow").get("onecard_key_requests_total}") == CLIENTS, 10, what="all are let in")
    for connection in opened:
        connection.sendall(data)
    statuses = Counter(int(connection.recv(4096)[9:12]) for connection in opened)
    for connection in opened:
        connection.close()

    assert set(statuses) == {200, 429}
    assert statuses[200] <= 6  # 200 tokens are reserved for each; without a look behind the body all would be answered
    assert counted(limited, "slow")['onecard_key_refused_requests_total,reason="tokens"}'] == statuses[429]


def test_streams_that_are_cut_at_any_moment_give_their_places_back(limited: Server):
    data = json.dumps(body("!slow 5 100", stream=True)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-api-key: sk-four\r\n"
    sent = f"{head}content-length: {len(data)}\r\n\r\n".encode() + data

    def cut(n: int) -> int:
        with limited.connect() as connection:
            connection.sendall(sent[: n * len(sent) // 25] if n < 25 else sent)
            return connection.recv(1 + 40 * (n - 25))[9:12] == b"429" if n >= 25 else 0

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(cut, range(CLIENTS)))

    def four_at_once() -> bool:
        streams = [limited.connect() for _ in range(4)]
        for stream in streams:
            stream.sendall(sent)
        heads = [stream.recv(64)[9:12] for stream in streams]
        fifth = limited.post(CHAT, body("hi"), headers={"x-api-key": "sk-four"}).status
        for stream in streams:
            stream.close()
        return heads == [b"200"] * 4 and fifth == 429

    until(four_at_once, 10, what="all four places are free, and no fifth")
    until(lambda: all(not model["busy"] for model in limited.get("/v1/status", headers=BOSS).json()["models"]), 10)
    told, book = counted(limited, "four"), used(limited, "four")
    assert told['onecard_key_tokens_total,kind="completion"}'] == book["completion_tokens"]
    assert told['onecard_key_tokens_total,kind="prompt"}'] == book["prompt_tokens"]


def test_openais_client_waits_as_long_as_it_is_told_and_is_answered_then(limited: Server):
    with openai.OpenAI(base_url=limited.url + "/v1", api_key="sk-again", max_retries=1) as client:
        ask = client.chat.completions.with_raw_response.create
        first = ask(model="fake", messages=[{"role": "user", "content": "x" * 3030}])  # 32 more than a minute has
        assert first.headers["x-ratelimit-remaining-tokens"] != first.headers["x-ratelimit-limit-tokens"] == "3000"
        began = time.monotonic()
        second = ask(model="fake", messages=[{"role": "user", "content": "hi"}])
        waited_s = time.monotonic() - began

    assert second.retries_taken == 1
    assert waited_s >= 0.3  # 50 tokens a second refill
    told = counted(limited, "again")
    assert told["onecard_key_requests_total}"] == 2
    assert told['onecard_key_refused_requests_total,reason="tokens"}'] == 1


def test_usage_is_what_was_served_on_every_surface(limited: Server):
    with openai.OpenAI(base_url=limited.url + "/v1", api_key="sk-all", max_retries=0) as client:
        chat = client.chat.completions.create(**body("hello", n=2))
        chunks = client.chat.completions.create(**body("a b", stream=True), stream_options={"include_usage": True})
        usage = [chunk.usage for chunk in chunks if chunk.usage is not None]
        completion = client.completions.create(model="fake", prompt=["x", "yy"])
        response = client.responses.create(model="fake", input="hello there")
        vectors = client.embeddings.create(model="fake", input=["a", "bb"])
    message = limited.post("/v1/messages", body("hi", max_tokens=9), headers={"x-api-key": "sk-all"}).json()["usage"]

    chats = [chat.usage, *usage, completion.usage]
    prompts = sum(one.prompt_tokens for one in chats if one is not None) + vectors.usage.prompt_tokens
    answers = sum(one.completion_tokens for one in chats if one is not None)
    assert response.usage is not None
    assert used(limited, "all") == {
        "jobs": 7,
        "prompt_tokens": prompts + response.usage.input_tokens + message["input_tokens"],
        "completion_tokens": answers + response.usage.output_tokens + message["output_tokens"],
    }
