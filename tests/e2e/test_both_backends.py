"""A GGUF file and a Hugging Face folder behind one server, and under one budget that holds only one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import demo
from demo import evaluate
from tests.e2e.server import Server, serving

pytestmark = pytest.mark.engine

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models: dict[str, Path | str] = {"a": "demo", "b": Path(demo.HF_PATH)}
    flags = ("--parallel", "4", "--context", "1024", "--budget", "345MiB")
    with serving(tmp_path_factory.mktemp("both"), models=models, flags=flags) as running:
        yield running


@pytest.fixture
def client(both: Server) -> openai.OpenAI:
    return both.client()


def ask(client: openai.OpenAI, model: str, **fields: Any) -> Any:
    return client.chat.completions.create(model=model, messages=FRANCE, temperature=0, **fields)


def test_both_are_served_in_turns_and_never_above_the_budget(both: Server, client: openai.OpenAI) -> None:
    for model in "ababab":
        assert ask(client, model).choices[0].message.content == "The capital of France is Paris."
        memory = both.get("/v1/status")["memory"]
        assert memory["reserved_bytes"] <= memory["budget_bytes"] == 345 * 2**20

    evictions = [both.metric("onecard_model_evictions_total", model_name=name, reason="room") for name in "ab"]
    assert min(evictions) >= 1


def test_a_folder_streams_with_logprobs_stop_and_usage(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    chunks = list(ask(client, "b", stream=True, stream_options=options, logprobs=True, top_logprobs=2, stop=[" Paris"]))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "The capital of France is"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None


def test_a_folder_answers_in_a_schema_and_calls_tools(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    asked: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": schema, "strict": False}}
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": schema}}

    answer = ask(client, "b", response_format=asked, max_tokens=40).choices[0].message.content
    call = ask(client, "b", tools=[tool], tool_choice="required", max_tokens=60).choices[0].message.tool_calls[0]

    assert answer is not None
    assert '"city"' in answer
    assert call.function.name == "look"


def test_the_plan_of_a_folder_tells_its_own_type_and_takes_no_other(both: Server) -> None:
    told = both.get("/v1/capacity?model=b")
    refused = httpx2.get(f"{both.url}/v1/capacity?model=b&kv_type=q8_0")

    assert told["plan"]["kv_type"] == "f32"
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "kv_type")


def test_choices_of_one_seed_repeat(client: openai.OpenAI) -> None:
    fields: Any = {"n": 3, "seed": 7, "max_tokens": 12, "extra_body": {"top_k": 40}}

    def texts() -> list[str | None]:
        answer = client.chat.completions.create(model="b", messages=FRANCE, temperature=1.5, **fields)
        return [choice.message.content for choice in answer.choices]

    assert texts() == texts()


async def test_sixteen_at_once_are_answered_as_one_by_one(both: Server) -> None:
    cases = [case for case in evaluate.cases(heldout=True) if not case.tools and not case.enable_thinking][:16]
    gate = asyncio.Semaphore(16)
    async with both.async_client() as client:

        async def answer(messages: Any, limit: asyncio.Semaphore) -> str | None:
            async with limit:
                reply = await client.chat.completions.create(
                    model="b", messages=messages, temperature=0, max_tokens=48, extra_body={"enable_thinking": False}
                )
                return reply.choices[0].message.content

        one = asyncio.Semaphore(1)
        alone = [await answer(list(case.messages), one) for case in cases]
        together = await asyncio.gather(*(answer(list(case.messages), gate) for case in cases))

    assert together == alone
