"""What a user does first, with the real SDK and strict validation, on the real engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from demo import evaluate
from tests.e2e.server import Server
from tests.models import canary_p

pytestmark = pytest.mark.engine

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


def canary(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    names = {model.id for model in client.models.list()}

    assert {"demo", "canary"} <= names
    assert client.models.retrieve("demo").id == "demo"


def test_a_chat_is_answered(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)

    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_chat_gives_the_same_text(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="demo", messages=FRANCE, temperature=0, stream=True, stream_options=options
        )
    )

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of France is Paris."
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_a_long_answer_arrives_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="canary", messages=canary("a"), max_tokens=1000, stream=True)

    texts = [choice.delta.content or "" for chunk in stream for choice in chunk.choices]

    assert "".join(texts) == canary_p.expected_text("a", 1000)
    assert len(texts) > 3  # a frame of a display each, however fast the model is


def test_a_conversation_of_two_turns_is_kept(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="demo", messages=FRANCE, temperature=0)
    follow: Any = [
        *FRANCE,
        {"role": "assistant", "content": first.choices[0].message.content},
        {"role": "user", "content": "And of Italy?"},
    ]

    second = client.chat.completions.create(model="demo", messages=follow, temperature=0)

    assert "Rome" in (second.choices[0].message.content or "")


def test_a_completion_continues_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="canary", prompt=["once", "twice"], max_tokens=12, temperature=0)

    assert [choice.text for choice in answer.choices] == [canary_p.expected_text("e", 12)] * 2


def test_a_suffix_is_filled_in_where_the_vocabulary_can(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="canary", prompt="def f(", suffix="): pass", max_tokens=9, temperature=0)
    assert answer.choices[0].text == canary_p.expected_infill(9)

    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="demo", prompt="def f(", suffix="): pass", max_tokens=9)
    assert refused.value.param == "suffix"


def test_thinking_is_apart_from_the_answer_when_asked_for(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is 7 plus 5?"}]
    extra = {"chat_template_kwargs": {"enable_thinking": True}}

    thought = client.chat.completions.create(model="demo", messages=question, temperature=0, extra_body=extra)
    plain = client.chat.completions.create(model="demo", messages=question, temperature=0)

    assert getattr(thought.choices[0].message, "reasoning_content", None)
    assert "12" in (thought.choices[0].message.content or "")
    assert "<think>" not in (thought.choices[0].message.content or "")
    assert not getattr(plain.choices[0].message, "reasoning_content", None)


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_a_tool_is_called_and_its_result_used(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0)
    (call,) = first.choices[0].message.tool_calls or []

    assert first.choices[0].finish_reason == "tool_calls"
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})

    messages += [
        first.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": '{"condition": "sunny", "temperature": 21}'},
    ]
    second = client.chat.completions.create(model="demo", messages=messages, tools=[WEATHER], temperature=0)
    assert "sunny" in (second.choices[0].message.content or "")


def test_text_and_tokens_convert_over_http(client: openai.OpenAI) -> None:
    there: Any = client.post("../tokenize", cast_to=object, body={"model": "canary", "prompt": "aé"})
    back: Any = client.post("../detokenize", cast_to=object, body={"model": "canary", "tokens": there["tokens"]})

    assert there["tokens"] == canary_p.tokens_of("aé")
    assert "aé" in back.values()
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("../detokenize", cast_to=object, body={"model": "canary", "tokens": [99_999]})
    assert refused.value.param == "tokens"


async def ask_all(server: Server, model: str, conversations: list[Any], *, at_once: int) -> list[str]:
    """Greedy answers, `at_once` requests in flight, streamed and not in turn."""
    gate = asyncio.Semaphore(at_once)
    async with server.async_client() as client:

        async def one(index: int, messages: Any) -> str:
            async with gate:
                if index % 2:
                    plain = await client.chat.completions.create(
                        model=model, messages=messages, temperature=0, max_tokens=64
                    )
                    return plain.choices[0].message.content or ""
                stream = await client.chat.completions.create(
                    model=model, messages=messages, temperature=0, max_tokens=64, stream=True
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

        return list(await asyncio.gather(*(one(i, c) for i, c in enumerate(conversations))))


async def test_sixteen_concurrent_requests_give_the_texts_they_give_alone(server: Server) -> None:
    cases = [case for case in evaluate.cases(heldout=True) if not case.tools and not case.enable_thinking]
    conversations = [list(case.messages) for case in cases[:: max(1, len(cases) // 32)]][:32]

    alone = await ask_all(server, "demo", conversations, at_once=1)
    together = await ask_all(server, "demo", conversations, at_once=16)

    assert len(conversations) >= 16
    assert together == alone


async def test_sixteen_concurrent_requests_are_exact_on_the_canary(server: Server) -> None:
    words = [chr(ord("a") + i % 26) * (1 + 37 * i % 400) for i in range(48)]

    answers = await ask_all(server, "canary", [canary(word) for word in words], at_once=16)

    assert answers == [canary_p.expected_text(word, 64) for word in words]


async def test_token_counters_equal_the_sum_of_the_usages(server: Server) -> None:
    names = ("onecard_prompt_tokens_total", "onecard_generation_tokens_total")
    before = [server.metric(name, model_name="canary") for name in names]
    async with server.async_client() as client:
        answers = await asyncio.gather(
            *(
                client.chat.completions.create(model="canary", messages=canary("q" * i), max_tokens=5 + i, n=1 + i % 3)
                for i in range(1, 13)
            )
        )

    after = [server.metric(name, model_name="canary") for name in names]

    usages = [answer.usage for answer in answers if answer.usage is not None]
    assert after[0] - before[0] == sum(usage.prompt_tokens for usage in usages)
    assert after[1] - before[1] == sum(usage.completion_tokens for usage in usages)
