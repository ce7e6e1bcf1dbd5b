"""OpenAI's own client, with strict validation of every answer, over a real socket."""

from __future__ import annotations

import json

import openai
import pytest

from tests.present import present

CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def user(text: str) -> list:
    return [{"role": "user", "content": text}]


def test_models_are_listed_and_found_by_name_and_alias(client):
    assert [model.id for model in client.models.list()] == ["fake", "org/small:Q8"]
    model = client.models.retrieve("gpt-4o-mini")
    assert model.id == "fake"
    assert model.context_length == model.max_model_len == model.meta["n_ctx"] == 4096
    assert client.models.retrieve("org/small:Q8").meta["n_ctx"] == 64
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("../../etc/passwd")
    assert caught.value.code == "model_not_found"


def test_a_chat_is_answered(client):
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=user("hello world"))
    assert answer.choices[0].message.content == "echo: hello world"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "fake"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens == 11 + 3
    again = client.chat.completions.create(model="fake", messages=user("hello world"))
    assert again.system_fingerprint == answer.system_fingerprint
    assert again.id != answer.id


def test_a_chat_is_streamed(client):
    chunks = list(
        client.chat.completions.create(
            model="fake", messages=user("!long 50"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == " ".join(map(str, range(50)))
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 50
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1


def test_usage_is_not_streamed_unasked(client):
    chunks = list(client.chat.completions.create(model="fake", messages=user("hi"), stream=True))
    assert all(c.choices and c.usage is None for c in chunks)


def test_several_choices_come_whole_and_streamed(client):
    answer = client.chat.completions.create(model="fake", messages=user("a b c"), n=6)
    assert [(c.index, c.message.content) for c in answer.choices] == [(i, "echo: a b c") for i in range(6)]
    texts = dict.fromkeys(range(6), "")
    for chunk in client.chat.completions.create(model="fake", messages=user("a b c"), n=6, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert set(texts.values()) == {"echo: a b c"}


def test_log_probabilities_are_returned(client):
    answer = client.chat.completions.create(model="fake", messages=user("a"), logprobs=True, top_logprobs=1)
    tokens = answer.choices[0].logprobs.content
    assert [t.token for t in tokens] == ["echo:", " a"]
    assert tokens[0].bytes == list(b"echo:")
    assert tokens[0].top_logprobs[0].logprob == -0.5
    chunks = list(client.chat.completions.create(model="fake", messages=user("a"), logprobs=True, stream=True))
    streamed = [t.token for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.content]
    assert streamed == ["echo:", " a"]


def test_a_limit_cuts_with_length_and_a_huge_one_is_clamped(client):
    answer = client.chat.completions.create(model="fake", messages=user("!long 50"), max_tokens=3)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("0 1 2", "length")
    answer = client.chat.completions.create(model="fake", messages=user("hi"), max_tokens=32_000)
    assert answer.choices[0].finish_reason == "stop"


def test_tool_calls_are_delivered_whole_and_streamed(client):
    answer = client.chat.completions.create(model="fake", messages=user(f"!say Sure. {CALL}"), tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("Sure.", "tool_calls")
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Paris"}'
    chunks = list(
        client.chat.completions.create(model="fake", messages=user(f"!say {CALL} {CALL}"), tools=TOOLS, stream=True)
    )
    parts = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
    first, second = ([part for part in parts if part.index == index] for index in (0, 1))
    for call in (first, second):
        assert (call[0].function.name, call[0].type, call[0].function.arguments) == ("weather", "function", "")
        assert all(part.function.name is None and part.id is None for part in call[1:])
        assert "".join(part.function.arguments for part in call) == '{"city": "Paris"}'
    assert first[0].id.startswith("call_")
    assert first[0].id != second[0].id
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tool_results_travel_back(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        *user("how is it?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    answer = client.chat.completions.create(model="fake", messages=turns, tools=TOOLS)
    assert answer.choices[0].message.content == "echo: sunny"


def test_without_tools_a_call_is_text(client):
    answer = client.chat.completions.create(model="fake", messages=user(f"!say {CALL}"))
    assert answer.choices[0].message.content == CALL
    assert answer.choices[0].finish_reason == "stop"


def test_reasoning_has_its_own_field(client):
    answer = client.chat.completions.create(
        model="fake", messages=user("!say <think>\nwell now\n</think>\n\nyes"), reasoning_effort="low"
    )
    assert answer.choices[0].message.reasoning_content == "well now"
    assert answer.choices[0].message.content == "yes"
    chunks = client.chat.completions.create(
        model="fake", messages=user("!say <think>\nwell now\n</think>\n\nyes"), stream=True
    )
    deltas = [c.choices[0].delta for c in chunks]
    assert "".join(getattr(d, "reasoning_content", "") or "" for d in deltas) == "well now"
    assert "".join(d.content or "" for d in deltas) == "yes"


def test_text_completions_in_all_prompt_shapes(client):
    assert client.completions.create(model="fake", prompt="a b").choices[0].text == "echo: a b"
    answer = client.completions.create(model="fake", prompt=["a", "b c", ""], n=2)
    texts = ["echo: a"] * 2 + ["echo: b c"] * 2 + ["echo: "] * 2
    assert [(c.index, c.text) for c in answer.choices] == list(enumerate(texts))
    assert answer.usage.prompt_tokens == 1 + 3 + 0
    assert client.completions.create(model="fake", prompt=[97, 98]).choices[0].text == "echo: ab"
    answer = client.completions.create(model="fake", prompt=[[97], [98]])
    assert [c.text for c in answer.choices] == ["echo: a", "echo: b"]
    assert client.completions.create(model="fake", prompt="a", suffix="b").choices[0].text == "echo: a|b"


def test_text_completions_have_legacy_log_probabilities(client):
    logprobs = client.completions.create(model="fake", prompt="a", logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["echo:", " a"]
    assert logprobs.text_offset == [0, 5]
    assert logprobs.token_logprobs == [-0.5, -0.5]
    assert logprobs.top_logprobs == [{"echo:": -0.5}, {" a": -0.5}]


def test_several_prompts_stream_side_by_side(server):
    # The client's own type forbids `finish_reason: null` in a streamed text completion, which OpenAI itself sends.
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        texts = dict.fromkeys(range(4), "")
        last = None
        for chunk in client.completions.create(
            model="fake", prompt=["a b", "c"], n=2, stream=True, stream_options={"include_usage": True}
        ):
            last = chunk
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == {0: "echo: a b", 1: "echo: a b", 2: "echo: c", 3: "echo: c"}
    assert present(present(last).usage).prompt_tokens == 3 + 1


def test_errors_have_the_clients_own_classes(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=user("x"), n=129)
    assert (caught.value.param, caught.value.code) == ("n", "integer_above_max_value")
    assert present(caught.value.request_id).startswith("req_")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=user("x"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=user("!refuse that is not right"))
    assert (caught.value.param, caught.value.code) == ("messages", "invalid_value")


def test_a_failure_in_a_stream_is_raised_and_not_swallowed(client):
    seen = []
    with pytest.raises(openai.APIError, match="worker") as caught:
        seen.extend(client.chat.completions.create(model="org/small:Q8", messages=user("!crash"), stream=True))
    assert caught.value.code == "worker_crashed"
    assert all(c.choices[0].finish_reason is None for c in seen)
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="org/small:Q8", messages=user("!crash"))
    assert caught.value.code == "worker_crashed"


async def test_the_async_client_streams_too(server):
    async with openai.AsyncOpenAI(
        base_url=server.url + "/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        stream = await client.chat.completions.create(model="fake", messages=user("a b"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == "echo: a b"


def test_tokens_of_several_prompts_are_summed(client, server):
    ask = {"model": "fake", "prompt": ["a", "b c"], "max_tokens": 9}
    usage = client.completions.create(**ask).usage
    streamed = server.post("/v1/completions", {**ask, "stream": True, "stream_options": {"include_usage": True}})
    last = json.loads(streamed.body.decode().split("\n\n")[-3].removeprefix("data: "))["usage"]

    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 5, 9)
    assert (last["prompt_tokens"], last["completion_tokens"], last["total_tokens"]) == (4, 5, 9)
