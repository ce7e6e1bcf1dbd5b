"""Two servers behind the edge answer as one does, and a node that dies takes only what it had begun to say."""

from __future__ import annotations

import json
import threading
import time

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.server import until


def ask(edge, text, **fields):
    messages = fields.pop("messages", [{"role": "user", "content": text}])
    return edge.chat(messages=messages, **fields)


def node_of(answer):
    return answer.headers["x-onecard-node"]


def test_an_answer_is_as_a_server_gives_it(edge):
    client = openai.OpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True)
    with client:
        chat = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "hello"}])
        assert chat.choices[0].message.content == "echo: hello"
        stream = client.chat.completions.create(
            model="gpt-4o-mini", messages=[{"role": "user", "content": "!long 50"}], stream=True
        )
        words = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert words.split() == [str(n) for n in range(50)]
        assert {model.id for model in client.models.list()} >= {"fake", "org/small:Q8"}
        with pytest.raises(openai.NotFoundError, match="nosuch"):
            client.chat.completions.create(model="nosuch", messages=[{"role": "user", "content": "hello"}])


def test_turns_of_a_conversation_go_to_one_node(edge):
    n_away = 0
    for talk in range(12):
        messages = [{"role": "user", "content": f"talk {talk}"}]
        homes = []
        for turn in range(4):
            answer = ask(edge, "", messages=messages)
            homes.append(node_of(answer))
            messages += [answer.json()["choices"][0]["message"], {"role": "user", "content": f"and {turn}"}]
        n_away += sum(home != homes[0] for home in homes)
    assert n_away == 0


def test_a_response_is_gone_on_from_where_it_is_held(edge):
    body = {"model": "fake", "input": "first", "store": True}
    first = edge.post("/v1/responses", body)
    later = [
        edge.post("/v1/responses", {**body, "input": f"next {n}", "previous_response_id": first.json()["id"]})
        for n in range(4)
    ]
    assert {answer.status for answer in later} == {200}
    assert {node_of(answer) for answer in later} == {node_of(first)}
    assert edge.get(f"/v1/responses/{first.json()['id']}").json()["id"] == first.json()["id"]


def test_a_stream_is_passed_on_word_by_word(edge):
    with edge.open_stream("!slow 300 8") as connection:
        connection.settimeout(20)
        received, arrivals = b"", []
        while b"[DONE]" not in received:
            received += connection.recv(65536)
            arrivals.append(received.count(b'"content"'))
    assert len(set(arrivals)) > 5, arrivals


def test_who_hangs_up_ends_the_job_on_its_node(edge):
    connection = edge.open_stream("!slow 50 100000")
    connection.settimeout(20)
    assert connection.recv(100)
    until(lambda: sum(node.model()["busy"] for node in edge.nodes.values()) == 1)
    connection.close()
    until(lambda: sum(node.model()["busy"] for node in edge.nodes.values()) == 0)


def test_the_page_of_metrics_has_every_node_s_series_once(edge):
    ask(edge, "hello")
    page = edge.get("/metrics").body.decode()
    families = list(text_string_to_metric_families(page))
    assert len({family.name for family in families}) == len(families)
    budget = next(family for family in families if family.name == "onecard_memory_budget_bytes")
    assert {sample.labels["node"] for sample in budget.samples} == {"a", "b"}
    sent = next(family for family in families if family.name == "onecard_cluster_requests")
    assert sum(sample.value for sample in sent.samples) >= 1


def test_what_is_of_one_server_is_refused_and_the_edge_tells_of_its_nodes(edge):
    ask(edge, "hello")
    refused = edge.post("/v1/memory/lease", {"bytes": "1MiB", "seconds": 5})
    assert refused.status == 400
    assert "ask the node itself" in refused.error["message"]
    assert edge.get("/health").json() == {"status": "ok"}
    assert edge.get("/ready").status == 200
    told = edge.cluster()["nodes"]
    assert [node["node"] for node in told] == ["a", "b"]
    assert any(node["models"].get("fake", {}).get("state") == "ready" for node in told)


def test_a_file_and_its_batch_are_on_the_same_node(edge):
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}}  # fmt: skip
    client = openai.OpenAI(base_url=edge.url + "/v1", api_key="none", max_retries=0)
    with client:
        file = client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id).status == "completed", 20)


def test_a_node_that_dies_ends_its_streams_and_no_other_request(edge):
    """Given streams on both nodes and a request that waits, when one node is killed, then the rest is answered."""
    streams = [edge.open_stream(f"!slow 40 60 {n}") for n in range(4)]
    for stream in streams:
        stream.settimeout(30)
    firsts = [stream.recv(65536) for stream in streams]
    victim = max(edge.cluster()["nodes"], key=lambda node: node["in_flight"])["node"]
    answers: list[str] = []

    def waits(n: int) -> None:
        answers.append(ask(edge, f"!prepare 600 {n}").json()["choices"][0]["message"]["content"])

    waiting = [threading.Thread(target=waits, args=(n,)) for n in range(6)]
    for thread in waiting:
        thread.start()
    until(lambda: sum(node["in_flight"] for node in edge.cluster()["nodes"]) >= 10)
    n_running = next(n["in_flight"] for n in edge.cluster()["nodes"] if n["node"] == victim)
    edge.kill(victim)
    for thread in waiting:
        thread.join(30)
    assert len(answers) == 6, "a request without a token was lost"
    ends = []
    for first, stream in zip(firsts, streams, strict=True):
        received = first
        while chunk := stream.recv(65536):
            received += chunk
            if b"0\r\n\r\n" in received[-8:]:
                break
        ends.append(b"[DONE]" in received)
        assert ends[-1] or b'"node_lost"' in received, received[-500:]
        stream.close()
    assert 1 <= ends.count(False) <= n_running
    assert ask(edge, "hello").status == 200
    edge.start(victim)
    until(lambda: edge.up() == {"a", "b"}, 20)


def test_without_any_node_there_is_one_sentence(canary_path, tmp_path):
    from tests.cluster.conftest import Edge

    alone = Edge(tmp_path, canary_path, api_keys=["sk-of-a-client-0123456789"])
    try:
        assert alone.get("/v1/models").status == 401
        key = {"authorization": "Bearer sk-of-a-client-0123456789"}
        began = time.monotonic()
        answer = alone.get("/v1/models", headers=key)
        assert (answer.status, answer.error["code"]) == (503, "no_node")
        assert "0 of 0 are up" in answer.error["message"]
        assert time.monotonic() - began < 10
        assert alone.get("/health").status == 200
    finally:
        alone.close()
