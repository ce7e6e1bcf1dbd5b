"""Keys with a name of their own: what they may use, how much of it, and what is told of that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import anthropic
import openai
import pytest

from tests.e2e.server import until
from tests.http.conftest import Server, settings

BOSS = {"x-api-key": "sk-boss"}


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


@pytest.fixture(scope="module")
def shared(canary_path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for several people."""
    folder = tmp_path_factory.mktemp("keys")
    config = settings(canary_path, admin_keys=["sk-boss"], api_keys=["sk-plain"])
    config["models"]["other"] = {**config["models"]["fake"], "aliases": []}
    config["models"]["other"]["adapters"] = {name: str(folder / name) for name in ("pirate", "clerk")}  # there are none
    config["models"]["fake"]["parallel"] = 1
    config["keys"] = {
        "rpm": {"key": "sk-rpm", "requests_per_minute": 2},
        "tpm": {"key": "sk-tpm", "tokens_per_minute": 60},
        "one": {"key": "sk-one", "max_concurrent": 1},
        "few": {"key": "sk-few", "models": ["gpt-*", "org/*"]},
        "matey": {"key": "sk-matey", "models": ["other:pirate"]},
        "first": {"key": "sk-first", "priority": 10},
        "root": {"key": "sk-root", "admin": True},
    }
    running = Server(config, folder / "server.log", XDG_DATA_HOME=str(folder))
    yield running
    assert running.stop() == 0, running.log


def ask(server: Server, name: str, text: str = "hi", **fields):
    body = {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}
    return server.post("/v1/chat/completions", body, headers=key(name))


def test_more_requests_than_a_minute_has_get_429_as_openais_sdk_reads_it(shared):
    with openai.OpenAI(base_url=shared.url + "/v1", api_key="sk-rpm", max_retries=0) as client:
        create = client.chat.completions.with_raw_response.create
        for left in ("1", "0"):
            headers = create(model="fake", messages=[{"role": "user", "content": "hi"}]).headers
            assert headers["x-ratelimit-limit-requests"] == "2"
            assert headers["x-ratelimit-remaining-requests"] == left
            assert headers["x-ratelimit-reset-requests"].endswith("s")
        with pytest.raises(
            openai.RateLimitError, match=r"the key 'rpm' has a limit of 2 requests per minute"
        ) as caught:
            create(model="fake", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "rate_limit_exceeded"
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 30
    assert shared.get("/v1/models", headers=key("rpm")).status == 200  # what asks for no work is not counted


def test_tokens_of_prompt_and_answer_count_and_anthropics_sdk_finds_what_is_left(shared):
    client = anthropic.Anthropic(base_url=shared.url, api_key="sk-tpm", max_retries=0)
    message: Any = {"model": "fake", "max_tokens": 8, "messages": [{"role": "user", "content": "x" * 70}]}
    first = client.messages.with_raw_response.create(**message)
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "60"
    assert int(first.headers["anthropic-ratelimit-tokens-remaining"]) == 0
    assert first.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    with pytest.raises(anthropic.RateLimitError, match="60 tokens per minute"):
        client.messages.create(**message)


def test_only_so_many_at_once_and_the_place_is_free_after_a_hang_up(shared):
    stream = shared.connect()
    body = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "!slow 50 400"}]})
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-api-key: sk-one"
    )
    stream.sendall(f"{head}\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
    assert b"200" in stream.recv(64)
    refused = ask(shared, "one")
    assert (refused.status, refused.error["type"]) == (429, "requests")
    assert "the key 'one' may have 1 request at once" in refused.error["message"]
    stream.close()
    until(lambda: ask(shared, "one").status == 200, 5)


def test_a_key_knows_of_its_models_only(shared):
    listed = [model["id"] for model in shared.get("/v1/models", headers=key("few")).json()["data"]]
    assert listed == ["fake", "org/small:Q8"]  # by its alias, and by its name
    refused = ask(shared, "few", model="other")
    assert (refused.status, refused.error["code"]) == (404, "model_not_found")
    assert "`other` does not exist or you do not have access to it" in refused.error["message"]
    assert shared.get("/v1/models/other", headers=key("few")).status == 404
    assert "`other`" not in ask(shared, "few", model="none").error["message"]
    assert ask(shared, "few").status == 200
    assert ask(shared, "first", model="other").status == 200


def waiting(server: Server, n: int) -> bool:
    return server.get("/v1/status", headers=BOSS).json()["models"][0]["waiting"] == n


def test_a_key_for_an_adapter_has_that_adapter_alone(shared):
    listed = [model["id"] for model in shared.get("/v1/models", headers=key("matey")).json()["data"]]
    assert listed == ["other:pirate"]
    refused = {model: ask(shared, "matey", model=model) for model in ("other", "other:clerk", "fake", "other:pirate")}
    assert [answer.status for answer in refused.values()] == [404, 404, 404, 503]
    assert "adapter 'pirate' is not served" in refused["other:pirate"].error["message"]  # it is this key's, and no file
    assert "`other:pirate`" in refused["other"].error["message"]


def test_a_request_of_a_higher_key_goes_first_and_its_own_wish_still_needs_an_admin(shared):
    running = shared.connect()
    body = {"model": "fake", "stream": True, "messages": [{"role": "user", "content": "!slow 5 200"}]}
    order: list[str] = []
    data = json.dumps(body)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json"
    running.sendall(f"{head}\r\nx-api-key: sk-plain\r\ncontent-length: {len(data)}\r\n\r\n{data}".encode())
    until(lambda: shared.get("/v1/status", headers=BOSS).json()["models"][0]["busy"] == 1, 5)
    later = {}
    for name in ("plain", "first"):
        later[name] = shared.connect()
        data = json.dumps({**body, "messages": [{"role": "user", "content": "!slow 100 3"}]})
        later[name].sendall(f"{head}\r\nx-api-key: sk-{name}\r\ncontent-length: {len(data)}\r\n\r\n{data}".encode())
        until(partial(waiting, shared, len(later)), 5)
    for name in ("first", "plain"):
        received = b""
        while b"data: {" not in received:
            received += later[name].recv(4096)
        order.append(name)
        if name == "first":
            assert waiting(shared, 1)
    running.close()
    assert order == ["first", "plain"]
    assert ask(shared, "first", priority=1).error["code"] == "admin_key_required"


def test_a_named_key_may_be_an_admins(shared):
    assert shared.post("/v1/models/other/load", {}, headers=key("few")).status == 403
    assert shared.post("/v1/models/other/load", {}, headers=key("root")).status == 200


def test_usage_is_by_key_for_admins_and_ones_own_for_others(shared):
    assert [ask(shared, "few", model=model).status for model in ("other", "fake")] == [404, 200]
    assert ask(shared, "plain", "hello").status == 200
    mine = shared.get("/v1/usage", headers=key("plain")).json()["data"]
    assert {line["key"] for line in mine} == {"api_keys"}
    before = mine[0]
    assert ask(shared, "plain", "hello").status == 200
    after = shared.get("/v1/usage?days=2", headers=key("plain")).json()["data"][-1]
    assert (after["model"], after["jobs"] - before["jobs"]) == ("fake", 1)
    assert after["completion_tokens"] > before["completion_tokens"]
    assert {"few", "api_keys"} <= {line["key"] for line in shared.get("/v1/usage", headers=BOSS).json()["data"]}
    page = shared.get("/metrics", headers=BOSS).body.decode()
    assert 'onecard_key_refused_requests_total{key_name="few",reason="model"}' in page
    assert f'onecard_key_tokens_total{{key_name="api_keys",kind="prompt"}} {after["prompt_tokens"]}' in page
    assert "sk-" not in page
    assert shared.get("/v1/usage?days=0", headers=BOSS).status == 400
