"""Embeddings and reranking over a real socket: the real SDK, what is refused and how, and which waits for which."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import openai
import pytest

from tests.e2e.server import Server, serving, until
from tests.embeddings import models
from tests.embeddings.driver import cosines
from tests.embeddings.models import TEXTS

pytestmark = pytest.mark.engine

LONGEST_TURN_S = 0.25
"""Of the server's own time while `/health` waits beside a huge request: some slices of its answer, of a millisecond."""
CHAT: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, made, backend, demo_model) -> Iterator[Server]:
    named = {name: made.path(name, backend) for name in ("minilm", "ranker", "typed", "mean")}
    named |= {"asleep": made.path("minilm", backend), "demo": demo_model}
    with serving(tmp_path_factory.mktemp("serve"), models=named, flags=("--context", "512")) as running:
        yield running


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    """As users have it: the strict one knows no vectors in base64, which it asks for itself."""
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def post(server: Server, path: str, body: Any) -> tuple[int, dict[str, Any], dict[str, str]]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def state(server: Server, name: str) -> dict[str, Any]:
    return server.get(f"/v1/models/{name}")


def test_the_sdk_gets_the_same_vectors_as_base64_and_as_numbers(client, server, made) -> None:
    coded = client.embeddings.create(model="minilm", input=TEXTS)
    plain = server.client().embeddings.create(model="minilm", input=TEXTS, encoding_format="float")

    one, other = (np.array([item.embedding for item in answer.data]) for answer in (coded, plain))
    assert [item.index for item in plain.data] == list(range(len(TEXTS)))
    assert np.abs(one - other).max() < 1e-6
    assert cosines(one, models.reference_vectors(made.folders["minilm"], TEXTS, "mean")).min() > 0.999
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 40


def test_one_text_and_token_ids_are_taken(client, server) -> None:
    one = client.embeddings.create(model="minilm", input="hello world", dimensions=16).data
    _, tokenized, _ = post(server, "/tokenize", {"model": "minilm", "prompt": "hello world"})
    _, marked, _ = post(server, "/tokenize", {"model": "minilm", "content": "hello world", "add_special": True})
    assert marked["tokens"] == tokenized["tokens"]
    ids = client.embeddings.create(model="minilm", input=tokenized["tokens"], dimensions=16).data
    lists = client.embeddings.create(model="minilm", input=[tokenized["tokens"]] * 2, dimensions=16).data

    assert len(one) == len(ids) == 1
    assert len(lists) == 2
    assert len(one[0].embedding) == 16
    assert np.abs(np.array(one[0].embedding) - np.array(ids[0].embedding)).max() < 1e-5


def test_base64_is_little_endian_float32(server) -> None:
    body = {"model": "minilm", "input": "hello", "encoding_format": "base64", "shiny": 1}
    status, answer, headers = post(server, "/v1/embeddings", body)

    row = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert status == 200
    assert row.shape == (384,)
    assert abs(np.linalg.norm(row) - 1) < 1e-5
    assert headers["x-onecard-ignored"] == "shiny"
    assert headers["x-onecard-model"] == "minilm"


LONG = "word " * 600
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": []}, "input", "empty_array"),
    ({"input": ""}, "input", "empty_string"),
    ({"input": ["a", ""]}, "input[1]", "empty_string"),
    ({"input": [[]]}, "input[0]", "empty_array"),
    ({"input": ["a", 1]}, "input[1]", "invalid_type"),
    ({"input": [1, "a"]}, "input", "invalid_type"),
    ({"input": [[1], "a"]}, "input[1]", "invalid_type"),
    ({"input": [1.5]}, "input[0]", "invalid_type"),
    ({"input": [True]}, "input[0]", "invalid_type"),
    ({"input": {"text": "a"}}, "input", "invalid_type"),
    ({"input": None}, "input", "invalid_type"),
    ({}, "input", "missing_required_parameter"),
    ({"input": ["a"] * 2049}, "input", "array_above_max_length"),
    ({"input": [-1]}, "input", "invalid_value"),
    ({"input": [[5], [100_000]]}, "input", "invalid_value"),
    ({"input": [2**40]}, "input", "invalid_value"),
    ({"input": "a", "dimensions": 0}, "dimensions", "integer_below_min_value"),
    ({"input": "a", "dimensions": 10**9}, "dimensions", "invalid_value"),
    ({"input": "a", "dimensions": 1.5}, "dimensions", "invalid_type"),
    ({"input": "a", "encoding_format": "xml"}, "encoding_format", "invalid_value"),
    ({"input": "a", "encoding_format": 1}, "encoding_format", "invalid_type"),
    ({"input": ["a", LONG]}, "input", "context_length_exceeded"),
    ({"input": LONG * 100}, "input", "context_length_exceeded"),
    ({"input": "a", "normalize": "yes"}, "normalize", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED)
def test_what_is_wrong_is_refused_by_name(server, fields, param, code) -> None:
    status, answer, _ = post(server, "/v1/embeddings", {"model": "minilm", **fields})

    assert status == 400
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code), answer


def test_tokens_of_another_tokenizer_are_explained(server) -> None:
    for tokens in ([5, 100_000], [2**40]):
        _, answer, _ = post(server, "/v1/embeddings", {"model": "minilm", "input": tokens})

        assert "check_embedding_ctx_length=False" in answer["error"]["message"]


def test_of_many_texts_the_one_that_is_too_long_is_named(server) -> None:
    texts = ["some text"] * 700
    texts[600] = LONG

    status, answer, _ = post(server, "/v1/embeddings", {"model": "mean", "input": texts})

    assert status == 400
    assert "input[600] resulted in" in answer["error"]["message"]
    assert "512" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", {"model": "asleep", "messages": CHAT}, "POST /v1/embeddings"),
        ("/v1/completions", {"model": "asleep", "prompt": "hi"}, "POST /v1/embeddings"),
        ("/v1/rerank", {"model": "asleep", "query": "a", "documents": ["b"]}, "POST /v1/embeddings"),
        ("/v1/embeddings", {"model": "demo", "input": "a"}, "name an embedding model"),
        ("/v1/rerank", {"model": "demo", "query": "a", "documents": ["b"]}, "a reranker"),
        ("/v1/embeddings", {"model": "ranker", "input": "a"}, "POST /v1/rerank"),
        ("/v1/chat/completions", {"model": "ranker", "messages": CHAT, "stream": True}, "POST /v1/rerank"),
    ],
)
def test_another_kind_of_model_is_refused_without_a_load(server, path, body, says) -> None:
    before = state(server, body["model"])["state"]

    status, answer, _ = post(server, path, body)

    assert status == 400
    assert answer["error"]["param"] == "model"
    assert says in answer["error"]["message"]
    assert state(server, body["model"])["state"] == before


def test_models_tell_what_they_are_for_before_and_after_a_load(server) -> None:
    post(server, "/v1/embeddings", {"model": "minilm", "input": "a"})

    assert state(server, "asleep")["capabilities"] == ["embedding"]
    assert state(server, "asleep")["state"] == "unloaded"
    assert state(server, "minilm")["capabilities"] == ["embedding"]
    assert state(server, "ranker")["capabilities"] == ["rerank"]
    assert state(server, "minilm")["context_length"] == 512


DOCUMENTS = ["The Seine flows through Paris.", "Bread is baked at 220 degrees.", "No river at all.", "x"]


def test_documents_come_back_by_their_scores(server, made) -> None:
    check_ranking(server, made, "ranker")


def test_a_reranker_that_tells_its_two_texts_apart_is_served(server, made) -> None:
    check_ranking(server, made, "typed")


def check_ranking(server, made, model: str) -> None:
    body = {"model": model, "query": "Which river?", "documents": [{"text": DOCUMENTS[0]}, *DOCUMENTS[1:]]}
    _, answer, _ = post(server, "/v1/rerank", {**body, "return_documents": True})
    _, best, _ = post(server, "/v1/rerank", {**body, "top_n": 2})

    scores = [result["relevance_score"] for result in answer["results"]]
    expected = models.reference_scores(made.folders[model], "Which river?", DOCUMENTS)
    assert scores == sorted(scores, reverse=True)
    assert [result["index"] for result in answer["results"]] == np.argsort(-expected).tolist()
    assert np.abs(np.sort(expected)[::-1] - scores).max() < 2e-3
    assert all(result["document"]["text"] == DOCUMENTS[result["index"]] for result in answer["results"])
    assert best["results"] == [{k: r[k] for k in ("index", "relevance_score")} for r in answer["results"][:2]]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 20
    assert answer["model"] == model


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"documents": []}, "documents", "empty_array"),
        ({"documents": ["a", ""]}, "documents[1]", "empty_string"),
        ({"documents": ["a", {"image": "b"}]}, "documents[1]", "invalid_type"),
        ({"documents": "a"}, "documents", "invalid_type"),
        ({"documents": ["a"] * 2049}, "documents", "array_above_max_length"),
        ({"query": ""}, "query", "empty_string"),
        ({"query": 3}, "query", "invalid_type"),
        ({"top_n": 0}, "top_n", "integer_below_min_value"),
        ({"max_tokens_per_doc": 100}, "max_tokens_per_doc", "unsupported_parameter"),
        ({"documents": ["a", LONG]}, "documents", "context_length_exceeded"),
    ],
)
def test_what_is_wrong_with_a_ranking_is_refused_by_name(server, fields, param, code) -> None:
    status, answer, _ = post(server, "/v1/rerank", {"model": "ranker", "query": "a", "documents": ["b"], **fields})

    assert status == 400
    assert (answer["error"]["param"], answer["error"]["code"]) == (param, code), answer


def test_requests_at_once_share_passes(server, client) -> None:
    client.embeddings.create(model="minilm", input="wake up")
    steps, inputs = (server.metric(f"onecard_batch_sequences_{k}", model_name="minilm") for k in ("count", "sum"))

    with ThreadPoolExecutor(32) as clients:
        answers = list(
            clients.map(lambda i: client.embeddings.create(model="minilm", input=["a text", f"of {i}"]), range(64))
        )

    n_steps = server.metric("onecard_batch_sequences_count", model_name="minilm") - steps
    assert len(answers) == 64
    assert server.metric("onecard_batch_sequences_sum", model_name="minilm") - inputs == 128
    assert n_steps < 64


def test_a_huge_request_stalls_neither_the_server_nor_a_small_one(server, client) -> None:
    huge = [f"text number {i} of a large request" for i in range(2048)]
    body = json.dumps({"model": "mean", "input": huge, "encoding_format": "float"}).encode()
    spent: list[float] = []

    with ThreadPoolExecutor(1) as aside:
        running = aside.submit(answer_to, server, body)
        until(lambda: n_running(server) > 0, within_s=60, what="the huge request runs")
        client.embeddings.create(model="mean", input="small")
        finished_first = running.done()
        while not running.done():
            before_s = server.cpu_s()
            server.get("/health")
            spent.append(server.cpu_s() - before_s)
            wait([running], timeout=0.05)
        data = json.loads(running.result())["data"]

    assert [item["index"] for item in data] == list(range(2048))
    assert not finished_first
    assert max(spent) < LONGEST_TURN_S


def answer_to(server: Server, body: bytes) -> bytes:
    """The bytes of an embedding's answer; to parse them here would stall the measurement."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=120)
    try:
        connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_client_that_hangs_up_frees_the_model(server) -> None:
    n_done = server.metric("onecard_prompt_tokens_total", model_name="mean")
    n_aborted = server.metric("onecard_request_success_total", model_name="mean", finished_reason="abort")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    body = json.dumps({"model": "mean", "input": ["many words in a long text " * 8] * 2048})
    connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
    until(lambda: n_running(server) > 0, within_s=10, what="the request runs")

    connection.close()

    until(lambda: n_running(server) == 0, within_s=10, what="the request is gone")
    assert server.metric("onecard_prompt_tokens_total", model_name="mean") - n_done < 2048 * 50 / 2
    ended = server.metric("onecard_request_success_total", model_name="mean", finished_reason="abort")
    assert ended > n_aborted


def n_running(server: Server) -> float:
    return server.metric("onecard_num_requests_running", model_name="mean")


@pytest.mark.parametrize(("name", "says"), [("asleep", "an embedding model"), ("ranker", "a reranker")])
def test_onecard_run_says_what_such_a_model_is_for(server, name, says) -> None:
    command = [sys.executable, "-m", "server.cli", "run", name, "hello", "--url", server.url]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert told.returncode == 2
    assert says in told.stderr
    assert state(server, "asleep")["state"] == "unloaded"


def test_the_price_of_an_embedding_model_is_right(server) -> None:
    post(server, "/v1/embeddings", {"model": "minilm", "input": "a"})
    model = next(m for m in server.get("/v1/status")["models"] if m["name"] == "minilm")

    assert model["parts"]["kv"] == 0
    assert 0.9 < model["measured_bytes"] / model["predicted_bytes"] < 1.1
