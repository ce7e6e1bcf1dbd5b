"""Ollama's API over a real socket and the fake engine: its own client, and requests as other clients send them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import ollama
import pytest

from server.app import create_app
from server.settings.config import Settings
from tests.http.conftest import ADMIN, KEY, Server, settings
from tests.present import present

HELLO = [{"role": "user", "content": "hello"}]
CALL = '!say <tool_call>{"name": "turn_on", "arguments": {"lamp": "hall"}}</tool_call>'
TURN_ON: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "turn_on",
        "description": "Turns a lamp on",
        "parameters": {"type": "object", "properties": {"lamp": {"type": "string"}}, "required": ["lamp"]},
    },
}


@pytest.fixture(scope="module")
def spoken(server: Server) -> ollama.Client:
    """Ollama's own client."""
    return ollama.Client(host=server.url, timeout=20)


def lines(answer) -> list[dict]:
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.decode().splitlines()]


def test_the_examples_of_its_readme_run(spoken):
    whole = spoken.chat(model="fake", messages=HELLO)
    assert (whole["message"]["content"], whole.message.content) == ("echo: hello", "echo: hello")
    assert (whole.done, whole.done_reason, whole.eval_count) == (True, "stop", 2)
    assert present(whole.total_duration) >= present(whole.eval_duration) > 0

    parts = list(spoken.chat(model="fake", messages=HELLO, stream=True))
    assert "".join(part["message"]["content"] for part in parts) == "echo: hello"
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]

    assert spoken.generate(model="fake", prompt="hello")["response"] == "echo: hello"
    streamed = spoken.generate(model="fake", prompt="hello", stream=True)
    assert "".join(part.response for part in streamed) == "echo: hello"

    assert [model.model for model in spoken.list().models] == ["fake", "org/small:Q8"]
    assert present(spoken.show("fake").modelinfo)["llama.context_length"] == 4096
    assert len(spoken.embed(model="fake", input=["The sky", "Grass"]).embeddings) == 2
    assert "fake" in [model.model for model in spoken.ps().models]


async def test_its_other_client_reads_the_same(server):
    client = ollama.AsyncClient(host=server.url)
    parts = [part async for part in await client.chat(model="fake", messages=HELLO, stream=True)]
    assert "".join(present(part.message.content) for part in parts) == "echo: hello"


def test_errors_have_its_shape(spoken, server):
    with pytest.raises(ollama.ResponseError) as caught:
        spoken.chat(model="does-not-yet-exist", messages=HELLO)
    assert caught.value.status_code == 404  # what the README looks for before it pulls
    assert "`fake`" in caught.value.error
    wrong = server.post("/api/chat", {"model": "fake", "messages": HELLO, "options": {"temperature": 9}})
    assert wrong.json()["param"] == "options.temperature"
    assert wrong.json()["error"].startswith("Invalid 'options.temperature'")
    unknown = server.post("/api/copy", {"source": "a", "destination": "b"})
    assert (unknown.status, unknown.json()["code"]) == (404, "unknown_url")


def test_a_failure_behind_the_headers_is_a_line_that_its_client_raises(spoken):
    with pytest.raises(ollama.ResponseError, match="the worker"):
        list(spoken.chat(model="fake", messages=[{"role": "user", "content": "!crash"}], stream=True))


def test_thinking_and_calls_are_apart_and_results_find_their_calls(spoken, server):
    said = spoken.chat(model="fake", messages=[{"role": "user", "content": "!say <think>hm</think>yes"}], think=True)
    assert (said.message.thinking, said.message.content) == ("hm", "yes")

    asked = [{"role": "user", "content": CALL}]
    for parts in (
        [spoken.chat(model="fake", messages=asked, tools=[TURN_ON])],
        list(spoken.chat(model="fake", messages=asked, tools=[TURN_ON], stream=True)),
    ):
        calls = [call for part in parts for call in part.message.tool_calls or []]
        assert [(call.function.name, call.function.arguments) for call in calls] == [("turn_on", {"lamp": "hall"})]

    results = [
        *asked,
        {"role": "assistant", "tool_calls": [call.model_dump() for call in calls] * 2},
        {"role": "tool", "content": "ok", "tool_name": "turn_on"},
        {"role": "tool", "content": "fine"},
    ]
    assert spoken.chat(model="fake", messages=results, tools=[TURN_ON]).done
    refused = server.post("/api/chat", {"model": "fake", "messages": [*HELLO, {"role": "tool", "content": "?"}]})
    assert refused.status == 400
    assert "messages[1]" in refused.json()["param"]


def test_what_a_request_says_of_tokens_counts(server):
    def ask(path: str, **fields: Any) -> dict:
        asked = (
            {"prompt": "!long 50"} if path == "/api/generate" else {"messages": [HELLO[0] | {"content": "!long 50"}]}
        )
        return server.post(path, {"model": "fake", "stream": False, **asked, **fields}).json()

    for path in ("/api/chat", "/api/generate"):
        cut = ask(path, options={"num_predict": 3})
        assert (cut["done_reason"], cut["eval_count"]) == ("length", 3)
        assert ask(path, options={"num_predict": -1})["eval_count"] == 50
        assert ask(path, logprobs=True, top_logprobs=2)["logprobs"][0].keys() >= {"token", "logprob", "top_logprobs"}
    assert ask("/api/generate", raw=True)["eval_count"] == 50
    assert ask("/api/generate", raw=True, options={"num_predict": 3})["eval_count"] == 3
    assert ask("/api/generate", prompt="a", suffix="b")["response"] == "echo: a|b"
    for name, value in (("template", "{{ .Prompt }}"), ("context", [1, 2])):
        refused = server.post("/api/generate", {"model": "fake", "prompt": "x", name: value})
        assert (refused.status, refused.json()["param"]) == (400, name)


def test_a_context_that_is_asked_for_cuts_nothing(server):
    """Ollama cuts the beginning of what does not fit into num_ctx, and says nothing."""
    long = {"model": "org/small:Q8", "messages": [{"role": "user", "content": "x" * 100}], "stream": False}
    for context in (32, 1_000_000):
        refused = server.post("/api/chat", {**long, "options": {"num_ctx": context}})
        assert (refused.status, refused.json()["code"]) == (400, "context_length_exceeded")
        assert "64 tokens" in refused.json()["error"]
    told = server.post("/api/chat", {"model": "fake", "messages": HELLO, "options": {"num_ctx": 32, "num_gpu": 9}})
    assert told.headers["x-onecard-ignored"] == "options.num_ctx, options.num_gpu"


def test_how_long_a_model_stays_is_told_and_an_empty_request_moves_it(spoken, server):
    def listed(name: str):
        return next(model for model in spoken.ps().models if model.model == name)

    spoken.chat(model="fake", messages=HELLO, keep_alive="1h30m")
    left = present(listed("fake").expires_at) - datetime.now(UTC)
    assert timedelta(minutes=89) < left <= timedelta(minutes=90)

    assert spoken.generate(model="fake", keep_alive=0).done_reason == "unload"
    assert server.model()["state"] == "unloaded"
    assert "fake" not in [model.model for model in spoken.ps().models]
    assert spoken.generate(model="fake", keep_alive=-1).done_reason == "load"
    assert server.model()["state"] == "ready"
    assert present(listed("fake").expires_at).year > 2200
    assert spoken.chat(model="fake:latest").done_reason == "load"
    assert spoken.embed(model="fake", input="").embeddings == []


def test_the_older_path_for_vectors_takes_one_text(spoken, server):
    assert spoken.embeddings(model="fake", prompt="hello").embedding
    assert spoken.embeddings(model="fake", prompt="").embedding == []
    assert server.post("/api/embeddings", {"model": "fake", "prompt": 7}).json()["param"] == "prompt"


def test_pulling_what_is_here_is_told_at_once(spoken):
    assert [part.status for part in spoken.pull("fake", stream=True)] == ["pulling manifest", "success"]
    with pytest.raises(ollama.ResponseError, match="from Hugging Face"):
        spoken.pull("gpt-oss:20b")


def test_a_stream_says_that_it_waits(small):
    small.post("/v1/models/slow/unload", {})
    found = lines(small.post("/api/chat", {"model": "slow", "messages": HELLO}))
    assert len(found) > 4
    assert [line["message"]["content"] for line in found].count("") > 2
    assert "".join(line["message"]["content"] for line in found) == "echo: hello"


def test_home_assistant_asks_for_a_lamp(server):
    """As its conversation agent sends it, by Ollama's client."""
    asked: dict[str, Any] = {
        "model": "fake",
        "stream": True,
        "options": {"num_ctx": 8192},
        "keep_alive": "-1s",
        "think": False,
        "tools": [TURN_ON],
        "messages": [
            {"role": "system", "content": "You are a voice assistant for Home Assistant."},
            {"role": "user", "content": CALL},
        ],
    }
    first = lines(server.post("/api/chat", asked))
    call = next(line["message"]["tool_calls"][0] for line in first if "tool_calls" in line["message"])
    asked["messages"] += [
        {"role": "assistant", "content": "", "tool_calls": [{"function": call["function"]}]},
        {"role": "tool", "content": '{"success": true}'},
    ]
    assert lines(server.post("/api/chat", asked))[-1]["done_reason"] == "stop"
    names = {model["model"].split(":")[0] for model in server.get("/api/tags").json()["models"]}
    assert "fake" in names


def test_jetbrains_and_vscode_find_their_models(server):
    """What they ask before the first chat: the version, the list, and each model's capabilities and context."""
    version = server.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 13, 4)
    for model in server.get("/api/tags").json()["models"]:
        shown = server.post("/api/show", {"name": model["name"]}).json()
        assert {"completion", "tools"} <= set(shown["capabilities"])
        assert shown["model_info"][f"{shown['model_info']['general.architecture']}.context_length"] in (4096, 64)
    asked = {"model": "fake", "messages": HELLO, "stream": True, "options": {"temperature": 0.1, "num_ctx": 4096}}
    assert lines(server.post("/api/chat", asked))[-1]["done"]


def test_a_key_opens_it_and_one_that_may_not_keep_models_is_told(keyed):
    asked = {"model": "fake", "messages": HELLO, "stream": False, "keep_alive": "5m"}
    refused = keyed.post("/api/chat", asked)
    assert (refused.status, refused.json()["code"]) == (401, "invalid_api_key")
    served = keyed.post("/api/chat", asked, headers={"authorization": f"Bearer {KEY}"})
    assert (served.status, served.headers["x-onecard-ignored"]) == (200, "keep_alive")
    allowed = keyed.post("/api/chat", asked, headers={"authorization": f"Bearer {ADMIN}"})
    assert (allowed.status, "x-onecard-ignored" in allowed.headers) == (200, False)
    leave = {"model": "fake", "keep_alive": 0}
    assert keyed.post("/api/generate", leave, headers={"x-api-key": KEY}).status == 403
    assert keyed.post("/api/generate", leave, headers={"x-api-key": ADMIN}).status == 200


@pytest.mark.parametrize(("peer", "status"), [("192.0.2.7", 403), ("127.0.0.1", 200), ("::ffff:127.0.0.1", 200)])
async def test_without_keys_only_this_machine_speaks_it(canary_path, peer, status):
    app = create_app(Settings.model_validate(settings(canary_path, host="0.0.0.0", allow_public=True)))
    transport = httpx2.ASGITransport(app=app, client=(peer, 7))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get("/api/version")
    assert answer.status_code == status
