"""`GET /v1/capacity` on a real server: the plan, OpenAI's errors, and nothing is loaded by it."""

from __future__ import annotations

import pytest

from tests.cpu import cpu_s


def test_capacity_tells_the_plan_at_once_and_loads_nothing(server):
    name = server.get("/v1/models").json()["data"][0]["id"]
    before = [m["state"] for m in server.get("/v1/status").json()["models"]]
    before_s = cpu_s(server.pid)
    answer = server.get(f"/v1/capacity?model={name}&context=1024&parallel=3&kv_type=q8_0")
    seconds = cpu_s(server.pid) - before_s

    assert answer.status == 200
    told = answer.json()
    assert told["model"] == name
    assert told["plan"] == {"context": 1024, "parallel": 3, "kv_type": "q8_0", "gpu_layers": 0, "kv_tokens": 0}
    assert sum(told["parts"].values()) == told["total_bytes"]
    assert told["fits"] is True
    assert [m["state"] for m in server.get("/v1/status").json()["models"]] == before
    assert seconds < 0.3


@pytest.mark.parametrize(
    ("query", "status", "param", "code"),
    [
        ("model=nope", 404, "model", "model_not_found"),
        ("context=abc", 400, "context", "invalid_value"),
        ("context=1", 400, "context", "invalid_value"),
        ("parallel=0", 400, "parallel", "invalid_value"),
        ("parallel=%D9%A3", 400, "parallel", "invalid_value"),
        ("kv_type=q9", 400, "kv_type", "invalid_value"),
        ("expert_layers=-1", 400, "expert_layers", "invalid_value"),
        ("expert_layers=3", 400, "expert_layers", "invalid_value"),
        ("ffn_layers=999", 400, "ffn_layers", "invalid_value"),
        ("colour=red", 400, "colour", "unknown_parameter"),
    ],
)
def test_wrong_questions_are_answered_in_openais_shape(server, query, status, param, code):
    name = server.get("/v1/models").json()["data"][0]["id"]
    answer = server.get(f"/v1/capacity?{query}" if "model" in query else f"/v1/capacity?model={name}&{query}")
    assert answer.status == status
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["code"] == code
    if status == 400:
        assert answer.error["param"] == param
